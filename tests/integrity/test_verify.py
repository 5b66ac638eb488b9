"""Verify: whatever is damaged is named, with its images and the next command; nothing else is."""

import json
import shutil
import sqlite3
from dataclasses import replace

import numpy as np
import pytest

import labelstore
from labelstore import PlanOptions
from labelstore.arrays.durable import StagedFiles
from labelstore.care.verification import verify
from labelstore.commit.lease_keeper import LeaseKeeper
from labelstore.errors import DamagedShard
from tests.integrity.conftest import flip_bit, shard_paths


@pytest.mark.parametrize("level", ["fast", "digests", "deep"])
def test_a_sound_store_is_sound(store, level):
    told = []
    report = verify(store, level, progress=lambda done, total: told.append((done, total)))
    assert report.is_sound, [str(problem) for problem in report.problems]
    assert report.leftovers == ()
    assert report.shards == 12
    assert told[0] == (0, 12)
    assert told[-1] == (12, 12)


def test_a_flipped_bit_is_named_with_its_images(store):
    path = shard_paths(store)[-1]
    flip_bit(path, 1000)
    assert verify(store, "fast").is_sound
    (problem,) = verify(store).problems
    line = str(problem)
    assert "\n" not in line
    for part in (str(path), "images 16-19 of labels/teacher", "crop shard 1", "labelstore.repair("):
        assert part in line
    assert verify(store).damaged_shards == (("labels/teacher", 2, 1),)


@pytest.mark.parametrize("damage", ["missing", "empty", "longer", "link"])
def test_fast_sees_what_costs_no_reading(store, damage):
    path = shard_paths(store, "crops")[0]
    data = path.read_bytes()
    path.unlink()
    if damage == "empty":
        path.touch()
    elif damage == "longer":
        path.write_bytes(data + b"\0")
    elif damage == "link":
        elsewhere = store.path.with_name("elsewhere")
        elsewhere.write_bytes(data)
        path.symlink_to(elsewhere)
    (problem,) = verify(store, "fast").problems
    assert problem.path == str(path)
    assert problem.group == "crops/plan"


def test_swapped_and_stale_files_are_seen(store):
    first, *_, last = [p for p in shard_paths(store) if p.parent == shard_paths(store)[0].parent]
    old = last.read_bytes()
    last.write_bytes(first.read_bytes())
    first.write_bytes(old)
    assert {p.path for p in verify(store).problems} == {str(first), str(last)}


def test_metadata_is_compared_and_a_store_with_damaged_metadata_does_not_open(store):
    name = "zarr.json" if store.arrays.name == "zarr" else "arrays.json"
    path = store.arrays.root / name
    path.write_bytes(path.read_bytes().replace(b'"uuid"', b'"uuld"'))
    with pytest.raises(DamagedShard, match=r"labelstore\.repair"):
        labelstore.open(store.path)
    (problem,) = verify(store.path).problems
    assert problem.path == str(path)
    path.unlink()
    with pytest.raises(DamagedShard, match="missing"):
        labelstore.open(store.path)


def test_arrays_of_another_store_are_refused(store, tmp_path):
    other = labelstore.create(
        tmp_path / "other", images=_folder(store), plan=PlanOptions(num_crops=6)
    )
    if other.arrays.name != store.arrays.name:
        pytest.skip("one backend is enough")
    shutil.rmtree(other.arrays.root)
    shutil.copytree(store.arrays.root, other.arrays.root)
    with pytest.raises(DamagedShard, match="another store"):
        labelstore.open(other.path)


def _folder(store):
    from labelstore.images import ImageFolder

    columns = store.image_columns
    return ImageFolder(
        root=store.path,
        classes=store.class_names,
        keys=tuple(columns["key"]),
        class_ids=columns["class_id"].astype(np.int64),
        sizes=columns["size"],
        mtimes_ns=columns["mtime_ns"],
    )


def test_a_changed_catalogue_row_is_named_by_its_table(store):
    with sqlite3.connect(store.path / "catalogue.db") as connection:
        connection.execute("UPDATE image_blocks SET class_id = size WHERE block = 0")
    connection.close()
    report = verify(store)
    assert any("table image_blocks" in str(problem) for problem in report.problems)
    assert all("restore the catalogue" in str(problem) for problem in report.problems)
    with sqlite3.connect(store.path / "catalogue.db") as connection:
        connection.execute("UPDATE shards SET fence = fence + 1")
    connection.close()
    tables = [str(problem) for problem in verify(store).problems]
    assert any("table shards" in line for line in tables)
    assert any("table image_blocks" in line for line in tables)


@pytest.mark.parametrize(
    ("field", "change", "says"),
    [
        ("probability", lambda a: a[:, :, ::-1].copy(), "descending"),
        ("class_id", lambda a: np.where(a == a[:, :, :1], a[:, :, 1:2], a), "twice"),
        ("box", lambda a: np.where(a < 65535, a + 400, a).astype(a.dtype), "outside"),
    ],
)
def test_deep_sees_values_that_were_wrong_when_written(store, field, change, says):
    group_name = "crops/plan" if field == "box" else "labels/teacher"
    group = store.group(group_name)
    row = group.shard(0, 0)
    (arrays,) = group.parts(0, range(group.layout.columns_per_shard))
    if field not in arrays:
        pytest.skip("class ids are stored in another form")
    arrays[field] = change(arrays[field])
    keeper = LeaseKeeper(store.catalogue, group_name, [0], 99)
    lease = keeper.acquire()
    specs = list(group.specs.values())
    with StagedFiles() as staged:
        files = store.arrays.encode_shard(specs, (0, 0), arrays)
        for file in files:
            staged.stage(store.arrays.root / file.record.key, file.data)
        new = replace(row, files=tuple(file.record for file in files))
        store.catalogue.ledger.replace_shard(lease, new, staged.publish)
    keeper.close()
    assert verify(store, "digests").is_sound
    store.refresh()
    problems = verify(store, "deep").problems
    assert any(says in str(problem) for problem in problems), problems
    assert all("images 0-7" in str(problem) for problem in problems)


def test_the_command_prints_a_line_per_problem_and_ends_with_three(store, labelstore_command):
    code, out, err = labelstore_command("verify", store.path)
    assert (code, out.count("\n")) == (0, 1), err
    assert "sound" in out
    assert labelstore_command("verify", store.path, "--fast", "--deep")[0] == 2
    for path in shard_paths(store)[:2]:
        path.unlink()
    code, out, _ = labelstore_command("verify", store.path, "--fast")
    assert (code, out.count("\n")) == (3, 3)
    code, out, _ = labelstore_command("verify", store.path, "--json")
    assert (code, out.count("\n")) == (3, 1)
    record = json.loads(out)
    assert len(record["problems"]) == 2
    assert record["problems"][0]["images"] == [0, 7]
    assert not record["sound"]
