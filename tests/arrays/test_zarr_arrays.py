"""The Zarr backend: the conformance suite, and what other programs see."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import tensorstore
import xarray
import zarr

from labelstore.arrays import open_arrays, sharding
from labelstore.arrays.durable import StagedFiles
from labelstore.errors import DamagedShard
from labelstore.testing.array_backend_tests import (
    CROPS,
    IMAGES,
    SPECS,
    ArrayBackendTests,
    field_spec,
    put_shard,
    random_arrays,
)


class TestZarrArrays(ArrayBackendTests):
    backend = "zarr"
    notices_every_flip = True


@pytest.fixture
def store(tmp_path):
    """A store with a hole: (backend, whole arrays as every reader must see them)."""
    backend = open_arrays(tmp_path / "arrays.zarr")
    with StagedFiles() as staged:
        for key, data in backend.metadata(SPECS, {"": {"uuid": "u"}}).items():
            staged.stage(backend.root / key, data)
        staged.publish()
    whole = {spec.name: np.full(spec.shape, spec.fill, spec.dtype) for spec in SPECS}
    rng = np.random.default_rng(0)
    for block, crop_shard in [(0, 0), (0, 1), (1, 1), (2, 0)]:
        images = min(4, IMAGES - 4 * block)
        arrays = random_arrays(SPECS, rng, images)
        put_shard(backend, SPECS, (block, crop_shard), arrays)
        for spec in SPECS:
            start = crop_shard * spec.shard[1]
            place = (slice(4 * block, 4 * block + images), slice(start, start + spec.shard[1]))
            whole[spec.name][place] = arrays[spec.name]
    return backend, whole


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_zarr_python_and_tensorstore_read_what_we_wrote(store, spec):
    backend, whole = store
    read = zarr.open_array(backend.root, path=spec.path, mode="r")[:]
    np.testing.assert_array_equal(read, whole[spec.name])
    kvstore = {"driver": "file", "path": str(backend.root / spec.path)}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
    np.testing.assert_array_equal(opened.read().result(), whole[spec.name])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("writer", ["zarr-python", "tensorstore"])
def test_we_read_what_they_wrote(store, spec, writer):
    backend, _ = store
    values = random_arrays([spec], np.random.default_rng(5))[spec.name]
    place = (slice(4, 8), slice(0, spec.shard[1]))
    if writer == "zarr-python":
        array = zarr.open_array(backend.root, path=spec.path, mode="r+")
        array = array.with_config({"write_empty_chunks": not spec.may_be_empty})
        array[place] = values
    else:
        kvstore = {"driver": "file", "path": str(backend.root / spec.path)}
        opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        opened[place].write(values).result()
    (ours,) = backend.encode_shard([spec], (1, 0), {spec.name: values})
    data = (backend.root / ours.record.key).read_bytes()
    size = sharding.index_bytes(len(ours.record.chunks[spec.path]))
    index = sharding.unpack_index(data[-size:], len(data) - size)
    checksums = tuple(
        None if o == sharding.EMPTY else sharding.ending_crc(data[o : o + n]) for o, n in index
    )
    record = replace(ours.record, size=len(data), chunks={spec.path: checksums})
    np.testing.assert_array_equal(backend.read(spec, (1, 0), [record]), values)


def test_xarray_opens_groups_and_shows_holes_as_sentinels(store):
    backend, whole = store
    for opened in (
        xarray.open_zarr(backend.root, group="labels/r50"),
        xarray.open_zarr(backend.root / "labels" / "r50"),
        xarray.open_datatree(backend.root, engine="zarr")["labels/r50"].to_dataset(),
    ):
        for spec in SPECS:
            np.testing.assert_array_equal(opened[spec.name].values, whole[spec.name])
            assert opened[spec.name].dims == spec.dimensions
        assert opened["tail"].attrs["scale"] == "log2"
        assert opened["image"].values.tolist() == list(range(IMAGES))
        assert opened["crop"].values.tolist() == list(range(CROPS))
    assert xarray.open_zarr(backend.root).attrs == {"uuid": "u"}
    # (1, 0) was never written
    assert np.isnan(whole["probability"][4:8, :6]).all()


def test_metadata_names_core_codecs_only(store):
    backend, _ = store
    allowed = {"bytes", "transpose", "blosc", "zstd", "crc32c", "sharding_indexed"}
    for spec in SPECS:
        metadata = zarr.open_array(backend.root, path=spec.path, mode="r").metadata.to_dict()
        (shards,) = metadata["codecs"]
        names = {codec["name"] for codec in shards["configuration"]["codecs"]}
        assert {shards["name"], *names} <= allowed
        assert metadata["dimension_names"] == spec.dimensions


def by_zarr_python(specs, attributes):
    """What zarr-python itself writes for these arrays, consolidated in each group from the leaves up."""
    files = {}
    store = zarr.storage.MemoryStore(files)
    groups = sorted({"", "labels", *attributes, *(spec.group for spec in specs)})
    for group in groups:
        zarr.create_group(store, path=group, attributes=attributes.get(group, {}))
    for spec in specs:
        blosc = zarr.codecs.BloscCodec(
            typesize=np.dtype(spec.dtype).itemsize, cname="zstd", clevel=spec.level, shuffle=spec.shuffle
        )  # fmt: skip
        zarr.create_array(
            store, name=spec.path, shape=spec.shape, dtype=spec.dtype, shards=spec.shard, chunks=spec.chunk,
            filters=[zarr.codecs.TransposeCodec(order=sharding.axis_order(spec))] if spec.row_axes_first else None,
            compressors=[blosc, zarr.codecs.Crc32cCodec()], fill_value=spec.fill, dimension_names=spec.dimensions,
            chunk_key_encoding={"name": "default", "separator": "."}, attributes=dict(spec.attributes),
        )  # fmt: skip
    for group in {spec.group for spec in specs}:
        for name, size in (("image", IMAGES), ("crop", CROPS)):
            blosc = zarr.codecs.BloscCodec(typesize=4, cname="zstd", shuffle="shuffle")
            zarr.create_array(
                store, name=f"{group}/{name}", data=np.arange(size, dtype="<u4"), chunks=(size,),
                compressors=[blosc, zarr.codecs.Crc32cCodec()], dimension_names=(name,),
                chunk_key_encoding={"name": "default", "separator": "."}, config={"write_empty_chunks": True},
            )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata", category=UserWarning)
        for group in reversed(groups):
            zarr.consolidate_metadata(store, path=group)
    return {key: files[key].to_bytes() for key in sorted(files)}


def test_metadata_is_what_zarr_python_writes(tmp_path):
    specs = [
        *SPECS,
        *(replace(spec, path=f"labels/r50-x/{spec.name}") for spec in SPECS),
        *(replace(spec, path=f"masks/m/{spec.name}", level=1) for spec in SPECS[:3]),
    ]
    specs[0] = replace(specs[0], attributes={"plan": {"seed": 0, "scale": [0.08, 1.0]}, "é": None})
    attributes = {"": {"uuid": "u"}, "labels/r50": {"teacher": "t"}}
    ours = open_arrays(tmp_path / "arrays.zarr").metadata(specs, attributes)
    theirs = by_zarr_python(specs, {"masks": {}, **attributes})
    assert ours == theirs


def test_metadata_after_growth_keeps_old_shards_readable(store):
    backend, whole = store
    grown = [
        replace(spec, shape=(IMAGES + 5, 2 * spec.shape[1], *spec.shape[2:])) for spec in SPECS
    ]
    for key, data in backend.metadata(grown).items():
        (backend.root / key).write_bytes(data)
    opened = xarray.open_zarr(backend.root, group="labels/r50")
    for spec in SPECS:
        read = opened[spec.name].values[:IMAGES, : spec.shape[1]]
        np.testing.assert_array_equal(read, whole[spec.name])


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (slice(4, 8), (2**29).to_bytes(4, "little"), "decoded bytes"),
        (slice(12, 16), (99).to_bytes(4, "little"), "says 99 bytes"),
        (slice(16, 24), b"\xff" * 8, "blosc"),
    ],
)
def test_wicked_frames_are_refused_though_the_checksums_agree(tmp_path, part, value, message):
    backend = open_arrays(tmp_path)
    spec = field_spec("tail", "u1", 255)
    # compressible, so that the frame is not a plain copy
    (file,) = backend.encode_shard([spec], (0, 0), {"tail": np.zeros((4, 6), "u1")})
    size = sharding.index_bytes(3)
    index = sharding.unpack_index(file.data[-size:], file.record.size - size)
    chunks = []
    for offset, length in index:
        frame = bytearray(file.data[offset : offset + length - 4])
        if message == "blosc":
            frame[2] &= 0xFF ^ 0x02
            frame[2] |= 4 << 5
        frame[part] = value
        frame = bytes(frame)[: length - 4]
        chunks.append(frame + sharding.crc32c(frame).to_bytes(4, "little"))
    stored, packed = sharding.pack_chunks(chunks)
    data = b"".join([*stored, packed])
    checksums = {spec.path: tuple(sharding.ending_crc(chunk) for chunk in chunks)}
    record = replace(file.record, size=len(data), chunks=checksums)
    path = tmp_path / record.key
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(DamagedShard, match=message):
        backend.read(spec, (0, 0), [record])


@pytest.mark.parametrize("entry", [(0, 2**40), (2**63, 30), (5, 0), (2**64 - 1, 30)])
def test_wicked_index(tmp_path, entry):
    backend = open_arrays(tmp_path)
    spec = field_spec("tail", "u1", 255)
    (file,) = backend.encode_shard([spec], (0, 0), {"tail": np.zeros((4, 6), "u1")})
    size = sharding.index_bytes(3)
    index = np.array(sharding.unpack_index(file.data[-size:], file.record.size - size), "<u8")
    index[1] = entry
    path = tmp_path / file.record.key
    path.parent.mkdir(parents=True)
    path.write_bytes(file.data[:-size] + sharding.seal_index(index))
    with pytest.raises(DamagedShard, match="index"):
        backend.read(spec, (0, 0), [file.record])
