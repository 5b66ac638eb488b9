"""R17: every label codec and dtype out of a store in every format that can hold it, and in again: zarr to HDF5 and
back.

What comes back is what was stored, bit for bit, or differs by no more than what is stated below, with the reason. The
sample tries every codec, dtype and format; the whole table is for `make stress`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

import labelstore
from labelstore import Full, Hard, Logits, MarginalRenorm, MarginalSmoothing, Smoothing
from labelstore.exchange import EXPORTS, Stated, export_labels
from labelstore.exchange.importing import FORMATS
from labelstore.testing.filled_store import IMAGE_SIZE, filled_store
from tests.flat_options import import_labels

NUM_IMAGES, NUM_CROPS, NUM_CLASSES, K = 12, 8, 12, 4
CODECS = {
    f"{cls.name}-{dtype}": cls(dtype=dtype, **({"k": K} if "k" in cls.__dataclass_fields__ else {}))
    for cls, dtypes in {
        MarginalSmoothing: ("float32", "float16", "uint8"),
        MarginalRenorm: ("float32", "float16", "uint8"),
        Smoothing: ("float32", "float16", "uint8"),
        Full: ("float32", "float16"),
        Logits: ("float32", "float16"),
    }.items()
    for dtype in dtypes
} | {"hard": Hard()}

EQUAL = 0.0
LAST_PLACES = 2.0**-21
"""float32: the tail is one minus the sum of what is kept (FKD, ml-dr have none), or the sum is divided by again
(mr)."""
HALF_STEP = 2.0**-11
"""float16: a label of mr or full, or one whose tail has a code, is scaled to sum to one and then rounded again."""
EIGHT_BITS = 2.0**-8
"""uint8: recovered probabilities are given steps again, from a tail that is one minus their sum."""
WITHOUT_TAIL = ("fkd", "ml-dr")
KINDS = {
    "fkd": ("ms", "mr", "smoothing", "hard", "full"),
    "ml-dr": ("ms", "mr", "smoothing", "hard"),
    "npz": ("ms", "mr", "smoothing", "hard", "full", "logits"),
    "parquet": ("ms", "mr", "smoothing", "hard", "full", "logits"),
}
"""Formats that go both ways -> codecs that they hold; maps have theirs in tests/exchange."""


@dataclass(frozen=True)
class Case:
    format: str
    codec: str
    backend: str
    """Of the store that it comes back to; it comes from the other one."""

    @property
    def bound(self) -> float:
        """Largest difference of any probability of the recovered label."""
        kind, _, dtype = self.codec.partition("-")
        if kind in ("hard", "logits") or self.codec == "full-float32":
            return EQUAL
        if dtype == "float32":
            return LAST_PLACES if kind == "mr" or self.format in WITHOUT_TAIL else EQUAL
        return HALF_STEP if dtype == "float16" else EIGHT_BITS


CASES = [
    Case(format_name, codec, backend)
    for format_name, kinds in KINDS.items()
    for codec in CODECS
    if codec.partition("-")[0] in kinds
    for backend in ("zarr", "hdf5")
]
OTHER = {"zarr": "hdf5", "hdf5": "zarr"}
SAMPLE = {
    "fkd-ms-float16-zarr",
    "fkd-full-float32-hdf5",
    "ml-dr-hard-hdf5",
    "ml-dr-ms-float32-zarr",
    "npz-ms-float32-hdf5",
    "npz-smoothing-float16-zarr",
    "parquet-mr-float32-zarr",
    "parquet-ms-uint8-hdf5",
    "parquet-logits-float16-hdf5",
}


def name_of(case):
    return f"{case.format}-{case.codec}-{case.backend}"


@pytest.fixture(scope="module")
def outputs():
    """A sharp teacher's and a soft one's."""
    rng = np.random.default_rng(0)
    sharp = np.linspace(0.5, 12, NUM_IMAGES)[:, None, None]
    return (rng.normal(size=(NUM_IMAGES, NUM_CROPS, NUM_CLASSES)) * sharp).astype("f4")


@pytest.fixture(scope="module")
def store_of(tmp_path_factory, outputs):
    """The store of one codec in one backend, made when it is first asked for."""
    root = tmp_path_factory.mktemp("stores")
    probs = np.exp(outputs - outputs.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)

    def made(codec, backend):
        path = root / f"{codec}-{backend}"
        if not path.exists():
            values = outputs if codec.startswith("logits") else probs
            filled_store(
                path, values, CODECS[codec], images_per_shard=8, crops_per_shard=4, backend=backend
            ).close()
        return path

    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory, store_of):
    """The images that those stores are of."""
    root = tmp_path_factory.mktemp("images")
    with labelstore.open(store_of("hard", "hdf5"), readonly=True) as store:
        keys = [str(key) for key in store.image_columns["key"]]
    for key in keys:
        (root / key).parent.mkdir(exist_ok=True)
        Image.new("L", IMAGE_SIZE[::-1]).save(root / key)
    return root


def arrays(labels):
    """Field -> what is stored, all image blocks."""
    group = labels.store.group(f"labels/{labels.name}")
    return {
        name: np.concatenate([group.read(block, None, name) for block in group.blocks])
        for name in group.specs
    }


@pytest.mark.sample(8)
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_labels_come_back(case, store_of, images, tmp_path, scale, matrix):
    if scale < 2 and name_of(case) not in SAMPLE:
        pytest.skip("left to the whole matrix")
    codec = CODECS[case.codec]
    with labelstore.open(store_of(case.codec, OTHER[case.backend]), readonly=True) as store:
        labels = store.label_set()
        export_labels(labels, format=case.format, target=tmp_path / "files")
        import_labels(
            tmp_path / "back",
            format=case.format,
            source=tmp_path / "files",
            images=images,
            stated=Stated(compression=codec.name, num_classes=NUM_CLASSES, temperature=1.0),
            dtype=getattr(codec, "dtype", None),
            images_per_shard=7,
            backend=case.backend,
        )
        with labelstore.open(tmp_path / "back", readonly=True) as other:
            again = other.label_set()
            rows = range(NUM_IMAGES)
            assert np.array_equal(again.boxes(rows), labels.boxes(rows))
            assert np.array_equal(again.flips(rows), labels.flips(rows))
            off = float(np.abs(again.recover(rows) - labels.recover(rows)).max())
            assert off <= case.bound
            if case.bound == EQUAL:
                stored, read = arrays(labels), arrays(again)
                assert stored.keys() == read.keys()
                for name, array in stored.items():
                    assert array.tobytes() == read[name].tobytes(), name
    matrix.record(
        "R17",
        round_trips=1,
        bit_equal=int(off == 0),
        values=NUM_IMAGES * NUM_CROPS * NUM_CLASSES,
        unequal=0,
    )


def test_no_pair_is_forgotten():
    """R17: a format that goes both ways has its round trips."""
    maps = {"relabel", "tokenlabeling"}  # tests/exchange/test_export.py has theirs
    assert set(EXPORTS) & set(FORMATS) == set(KINDS) | maps
    assert {name_of(case) for case in CASES} > SAMPLE
