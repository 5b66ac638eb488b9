"""R6, R7, R8: whatever happens to a file is seen by the read that needs it, or by verify; nothing is read wrongly."""

import random
import shutil
from functools import partial
from typing import Any

import pytest

import labelstore
from labelstore import Full
from labelstore.analysis.disk import storage
from labelstore.care.freezing import freeze
from labelstore.care.verification import verify
from labelstore.catalogue.records import ResultRow, RunRow
from labelstore.errors import DamagedShard, LabelStoreError
from labelstore.store import open_store
from labelstore.testing.filled_store import add_label_set, fill_blocks
from tests.stress.workers import NUM_CLASSES, soft_labels

FLIPS = 50
FILES = 5


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
        for row in store.catalogue.ledger.shards(name)
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


def problems(store, group, row):
    found = store.arrays.verify(
        tuple(group.specs.values()), (row.block, row.crop_shard), row.files, "digest"
    )
    return [problem for problem in found if problem.in_ledger]


@pytest.mark.sample(1)
def test_flipped_bits_in_shards(full, scale, matrix):
    """R6."""
    rng = random.Random(4)
    files = shard_files(full)
    # few bits of an HDF5 file are read: fewer flips might hit none
    flips, seen_by_read = max(FLIPS, round(FLIPS * scale)), 0
    for _ in range(flips):
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
            assert "labelstore.repair" in str(error)
        path.write_bytes(good)
    # a bit of a zarr file is in a chunk or in the index; an HDF5 file also has bytes that we never read
    assert seen_by_read == flips or full.arrays.name == "hdf5"
    assert seen_by_read
    assert verify(full).is_sound
    matrix.record(
        "R6", **{f"{full.arrays.name}_flips": flips}, unnoticed=0, seen_by_read=seen_by_read
    )


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "damage", ["missing", "empty", "truncated", "swapped", "stale", "duplicated", "folder"]
)
def test_files_that_are_not_what_they_were(full, scale, matrix, damage):
    """R8."""
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
        with pytest.raises(DamagedShard, match=r"labelstore\.repair"):
            read(group, row)
        (problem,) = problems(full, group, row)
        assert full.arrays.root / problem.key == path
        if path.is_dir():
            path.rmdir()
        path.write_bytes(good)
        other.write_bytes(others)
    assert verify(full).is_sound
    matrix.record("R8", **{damage: round(FILES * scale)}, wrong=0)


@pytest.mark.sample(1)
def test_extra_files_are_named_and_harmless(full):
    _, _, path = shard_files(full)[0]
    extra = path.with_name(path.name.replace("0", "9", 1))
    extra.write_bytes(path.read_bytes())
    report = verify(full)
    assert report.is_sound
    (found,) = report.leftovers
    assert (full.path / found.path, found.kind) == (extra, "orphan")


@pytest.fixture
def masked(full):
    """The store with all that can be asked of one: two label sets, a mask, a run."""
    labels = soft_labels(full.num_rows, full.num_crops)
    add_label_set(full, Full(dtype="float32"), NUM_CLASSES, name="full")
    fill_blocks(full, labels, name="full")
    labelstore.calibrate(full.label_set("teacher"), name="ferkd")
    run = RunRow(
        name="r", folder="runs/r", label_sets=("teacher",), masks=("ferkd",), config={}, started=1.0
    )
    full.catalogue.runs.add(run)
    full.catalogue.results.add(ResultRow(run="r", name="top1", epoch=3, value=76.5))
    return full


def everything(path) -> list[Any]:
    """What every read and query of a store returns."""
    with labelstore.open(path, readonly=True) as store:
        found: list[Any] = [
            store.uuid, store.class_names, store.plan(), store.label_sets, store.masks,
            store.images().to_csv(), store.teachers().to_csv(), store.shards().to_csv(),
            store.catalogue.runs.all(), store.catalogue.results.all(), store.image_rows(store.images()["key"][:3]).tolist(),
            repr(storage(store)),
        ]  # fmt: skip
        for name in store.label_sets:
            held = store.label_set(name)
            found.append((held.row, held.ground_truth.tolist(), held.present.tolist()))
            for block in held.blocks:
                boxes, flips = held.crops(block)
                found.append((held.dense(block).tobytes(), boxes.tobytes(), flips.tobytes()))
        for name in store.masks:
            mask = store.mask(name)
            found.append((mask.row, [mask.regions(block).tobytes() for block in mask.blocks]))
    return found


def check_everything(path, expected):
    assert everything(path) == expected


def flipped(path, rng) -> bytes:
    """Flip one bit of a file; what it held before."""
    good = path.read_bytes()
    bad, bit = bytearray(good), rng.randrange(8 * len(good))
    bad[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bad)
    return good


@pytest.mark.sample(1)
def test_flipped_bits_in_metadata_and_manifest(masked, scale, matrix, tmp_path):
    """R7."""
    frozen = tmp_path / "frozen"
    freeze(masked, frozen)
    rng, counts = random.Random(6), {"metadata": 0, "manifest": 0}
    expected = everything(frozen)
    with open_store(frozen) as store:
        paths = [store.arrays.root / key for key in store.catalogue.metadata.digests()]
    for path in [*paths, frozen / "labelstore.json"]:
        path.chmod(0o644)
    refused = 0
    for number in range(round(26 * scale)):
        kind = ("metadata", "manifest")[number % 2]
        path = frozen / "labelstore.json" if kind == "manifest" else rng.choice(paths)
        good = flipped(path, rng)
        counts[kind] += 1
        error = refusal(lambda: check_everything(frozen, expected))
        refused += error is not None
        assert error is None or str(path) in str(error)
        assert error is None or error.exit_code in (3, 4)
        found = verify(frozen).problems
        # a size in the manifest that is wrong shows where it disagrees: with the file, or the ledger's row of it
        assert found if kind == "manifest" else str(path) in {problem.path for problem in found}
        path.write_bytes(good)
    assert verify(frozen).is_sound
    matrix.record("R7", **counts, refused=refused, changed=0)


@pytest.mark.sample(1)
def test_flipped_bits_in_the_catalogue(masked, scale, matrix, tmp_path):
    """R7."""
    copy = tmp_path / "copy"
    shutil.copytree(masked.path, copy)
    expected = everything(copy)
    catalogue = copy / "catalogue.db"
    rng, refused = random.Random(7), 0
    for _ in range(round(13 * scale)):
        good = flipped(catalogue, rng)
        error = refusal(lambda: check_everything(copy, expected))
        assert error is None or error.exit_code in (3, 4), error
        refused += error is not None
        catalogue.write_bytes(good)
    assert verify(copy).is_sound
    matrix.record("R7", catalogue=round(13 * scale), refused=refused, changed=0)
