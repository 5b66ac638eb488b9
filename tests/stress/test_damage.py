"""R6, R7, R8: whatever happens to a file is seen by the read that needs it, or by verify; nothing is read wrongly."""

import random
import shutil
from functools import partial

import pytest

import labelstore
from labelstore.errors import DamagedShard, LabelStoreError
from labelstore.integrity import freeze, verify
from labelstore.store import open_store
from labelstore.testing.filled_store import fill_blocks
from tests.stress.workers import soft_labels

FLIPS = 60
FILES = 8


def refusal(call) -> LabelStoreError | None:
    """What the call was refused with, if it was; it asserts for itself that what it read is right."""
    try:
        call()
    except LabelStoreError as error:
        return error
    return None


@pytest.fixture
def full(empty):
    path = empty()
    with open_store(path) as store:
        fill_blocks(store, soft_labels(store.num_rows, store.num_crops), name="teacher")
        yield store


def shard_files(store):
    """(group, ledger row, path) of every file."""
    return [
        (store.group(name), row, store.arrays.root / file.key)
        for name in store.group_names()
        for row in store.catalogue.shards(name)
        for file in row.files
    ]


def read(group, row):
    """All bytes of one shard's arrays, as a reader gets them."""
    per = group.layout.columns_per_shard
    first = row.crop_shard * per
    (part,) = group.parts(row.block, range(first, first + per))
    return {name: array.tobytes() for name, array in part.items()}


def check_read(group, row, expected):
    assert read(group, row) == expected


def check_labels(path, expected):
    with labelstore.open(path, readonly=True) as store:
        assert (store.label_set("teacher").recover([0, 9]) == expected).all()


def problems(store, group, row):
    found = store.arrays.verify(
        tuple(group.specs.values()), (row.block, row.crop_shard), row.files, "digest"
    )
    return [problem for problem in found if problem.in_ledger]


def test_flipped_bits_in_shards(full, scale):
    rng = random.Random(4)
    files = shard_files(full)
    seen_by_read = 0
    for _ in range(round(FLIPS * scale)):
        group, row, path = rng.choice(files)
        good, expected = path.read_bytes(), read(group, row)
        bit = rng.randrange(8 * len(good))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        (problem,) = problems(full, group, row)
        assert full.arrays.root / problem.key == path
        error = refusal(partial(check_read, group, row, expected))
        if error is not None:
            seen_by_read += 1
            assert isinstance(error, DamagedShard)
            assert str(path) in str(error)
            assert "labelstore repair" in str(error)
        path.write_bytes(good)
    # a bit of a zarr file is in a chunk or in the index; an HDF5 file also has bytes that we never read
    assert seen_by_read == round(FLIPS * scale) or full.arrays.name == "hdf5"
    assert seen_by_read
    assert verify(full).is_sound


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "truncated", "swapped", "stale", "duplicated", "folder"]
)
def test_files_that_are_not_what_they_were(full, scale, damage):
    rng = random.Random(damage)
    files = shard_files(full)
    for _ in range(round(FILES * scale)):
        group, row, path = rng.choice(files)
        alike = [f for g, r, f in files if g is group and f.suffix == path.suffix]
        alike = [
            f for f in alike if f.parent == path.parent and f.read_bytes() != path.read_bytes()
        ]
        other = rng.choice(alike)
        good, others = path.read_bytes(), other.read_bytes()
        path.unlink()
        if damage == "empty":
            path.touch()
        elif damage == "truncated":
            path.write_bytes(good[: rng.randrange(1, len(good))])
        elif damage == "swapped":
            path.write_bytes(others)
            other.write_bytes(good)
        elif damage in ("stale", "duplicated"):
            path.write_bytes(others)
        elif damage == "folder":
            path.mkdir()
        with pytest.raises(DamagedShard, match="labelstore repair"):
            read(group, row)
        (problem,) = problems(full, group, row)
        assert full.arrays.root / problem.key == path
        if path.is_dir():
            path.rmdir()
        path.write_bytes(good)
        other.write_bytes(others)
    assert verify(full).is_sound


def test_extra_files_are_named_and_harmless(full):
    _, _, path = shard_files(full)[0]
    extra = path.with_name(path.name.replace("0", "9", 1))
    extra.write_bytes(path.read_bytes())
    report = verify(full)
    assert report.is_sound
    (found,) = report.leftovers
    assert (full.path / found.path, found.kind) == (extra, "orphan")


def test_flipped_bits_in_metadata_and_manifest(full, scale, tmp_path):
    frozen = tmp_path / "frozen"
    freeze(full, frozen)
    rng = random.Random(6)
    with open_store(frozen) as store:
        expected = store.label_set("teacher").recover([0, 9])
        paths = [store.arrays.root / key for key in store.catalogue.metadata_digests()]
    for path in [*paths, frozen / "labelstore.json"]:
        path.chmod(0o644)
    for number in range(round(10 * scale)):
        path = frozen / "labelstore.json" if number % 3 == 0 else rng.choice(paths)
        good = path.read_bytes()
        bad = bytearray(good)
        bit = rng.randrange(8 * len(good))
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        error = refusal(lambda: check_labels(frozen, expected))
        assert error is None or str(path) in str(error)
        assert error is None or error.exit_code in (3, 4)
        assert str(path) in {problem.path for problem in verify(frozen).problems}
        path.write_bytes(good)
    assert verify(frozen).is_sound


def test_flipped_bits_in_the_catalogue(full, scale, tmp_path):
    copy = tmp_path / "copy"
    expected = full.label_set("teacher").recover([0, 9])
    shutil.copytree(full.path, copy)
    catalogue = copy / "catalogue.db"
    good = catalogue.read_bytes()
    rng = random.Random(7)
    for _ in range(round(25 * scale)):
        bad = bytearray(good)
        bit = rng.randrange(8 * len(good))
        bad[bit // 8] ^= 1 << bit % 8
        catalogue.write_bytes(bad)
        error = refusal(lambda: check_labels(copy, expected))
        assert error is None or error.exit_code in (3, 4), error
    catalogue.write_bytes(good)
    assert verify(copy).is_sound
