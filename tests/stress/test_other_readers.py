"""R18: one store through xarray, tensorstore, plain zarr and h5dump: every committed value is equal, holes are
holes."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from labelstore import Full, MarginalSmoothing
from labelstore.care.freezing import freeze
from labelstore.testing.filled_store import add_label_set, fill_blocks, filled_store
from tests.stress.workers import NUM_CLASSES, soft_labels

NUM_IMAGES, NUM_CROPS = 14, 6
CODECS = {
    "half": MarginalSmoothing(k=3),
    "eight": MarginalSmoothing(k=3, dtype="uint8"),
    "table": MarginalSmoothing(k=2, class_ids="table"),
    "full": Full(dtype="float32"),
}


def golden(path, backend):
    """A store of four codecs, an image left out, and its last image block missing."""
    labels = soft_labels(NUM_IMAGES, NUM_CROPS)
    store = filled_store(
        path, labels, CODECS["half"], name="half", images_per_shard=4, crops_per_shard=3,
        bad={5}, backend=backend, blocks=[0, 1, 2],
    )  # fmt: skip
    for name in ("eight", "table", "full"):
        add_label_set(store, CODECS[name], NUM_CLASSES, name=name)
        fill_blocks(store, labels, name=name, bad={5}, blocks=[0, 1, 2])
    return store


def whole_arrays(store):
    """Array path -> the array as this package reads it, sentinels where nothing is committed."""
    found = {}
    for name in store.group_names():
        group = store.group(name)
        for spec in group.specs.values():
            array = np.full(spec.shape, spec.fill, spec.dtype)
            for row in store.catalogue.ledger.shards(name):
                values = store.arrays.read(spec, (row.block, row.crop_shard), row.files)
                rows = group.layout.rows(row.block)
                first = row.crop_shard * spec.shard[1]
                place = slice(rows.start, rows.stop), slice(first, first + spec.shard[1])
                array[place] = values[: len(rows)]
            found[spec.path] = array
    return found


@pytest.mark.slow
def test_zarr_store(tmp_path, matrix):
    tensorstore, xarray, zarr = map(pytest.importorskip, ("tensorstore", "xarray", "zarr"))
    values = 0
    with golden(tmp_path / "store", "zarr") as store:
        freeze(store, tmp_path / "frozen", allow_incomplete=True)
        expected = whole_arrays(store)
    assert len(expected) > 10
    root = tmp_path / "frozen" / "arrays.zarr"
    opened = zarr.open_group(root, mode="r")
    for path, array in expected.items():
        group, _, name = path.rpartition("/")
        np.testing.assert_array_equal(opened[path][...], array)
        kvstore = {"driver": "file", "path": str(root / path)}
        other = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        np.testing.assert_array_equal(other.read().result(), array)
        with xarray.open_zarr(root, group=group, mask_and_scale=False) as data:
            np.testing.assert_array_equal(data[name].values, array)
            assert data["image"].values.tolist() == list(range(NUM_IMAGES))
        values += 3 * array.size
    matrix.record("R18", values=values, unequal=0, readers=3)


def test_hdf5_store(tmp_path, matrix):
    h5py = pytest.importorskip("h5py")
    with golden(tmp_path / "store", "hdf5") as store:
        expected, files = whole_arrays(store), 0
        dumped = values = 0
        for name in store.group_names():
            group = store.group(name)
            for row in store.catalogue.ledger.shards(name):
                path = store.arrays.root / row.files[0].key
                rows = group.layout.rows(row.block)
                with h5py.File(path, "r") as file:
                    for spec in group.specs.values():
                        first = row.crop_shard * spec.shard[1]
                        wanted = expected[spec.path][
                            rows.start : rows.stop, first : first + spec.shard[1]
                        ]
                        held = file[spec.name][...]
                        np.testing.assert_array_equal(held[: len(rows)], wanted)
                        values += wanted.size
                        if shutil.which("h5dump") and (row.block, row.crop_shard) == (1, 0):
                            dumped += same_in_dump(path, spec, held)
                files += 1
    assert files
    matrix.record("R18", values=values + dumped, unequal=0, readers=1 + bool(dumped))


def same_in_dump(path, spec, held) -> int:
    """h5dump's numbers of one dataset, which it prints in C order."""
    command = ["h5dump", "-y", "-w", "0", "-m", "%.9g", "-d", f"/{spec.name}", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    data = re.search(r"DATA \{(.*?)\n\s*\}", shown, re.DOTALL)[1]
    numbers = [float(word) for word in data.replace(",", " ").split()]
    np.testing.assert_array_equal(np.array(numbers).astype(held.dtype), held.reshape(-1))
    return len(numbers)
