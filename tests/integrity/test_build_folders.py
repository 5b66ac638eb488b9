"""What a killed create or freeze leaves beside a store, and a store that lost its catalogue."""

import os
import shutil
from pathlib import Path

import pytest

from labelstore import PlanOptions
from labelstore.care.freezing import freeze
from labelstore.care.leftovers import gc
from labelstore.errors import ConflictError, DamagedShard, StoreNotFound
from labelstore.store import create, open_store

HOUR = 3600


def left_behind(store, name="0123abcd"):
    """As `create` and `freeze` build: the store's files under a hidden name, an hour and more ago."""
    folder = store.path.with_name(f".{store.path.name}.{name}.tmp")
    shutil.copytree(store.path, folder)
    for root, _, files in os.walk(folder):
        for path in (Path(root), *(Path(root) / file for file in files)):
            os.utime(path, (1, 1))
    return folder


def test_gc_removes_a_build_folder_that_nobody_wrote_to_for_an_hour(store):
    folder = left_behind(store)
    found = gc(store, dry_run=True)
    assert [(each.path, each.kind) for each in found.removed] == [(f"../{folder.name}", "building")]
    assert folder.exists()
    assert gc(store).bytes > 1000
    assert not folder.exists()


def test_one_that_is_being_built_and_what_is_no_store_stay(store):
    working, foreign = left_behind(store, "00000001"), left_behind(store, "00000002")
    # its folders are old, but a file was just written
    next(path for path in working.rglob("*") if path.is_file()).touch()
    (foreign / "notes.txt").write_text("mine")
    other = store.path.with_name(".another.0123abcd.tmp")
    other.mkdir()
    (link := store.path.with_name(f".{store.path.name}.00000003.tmp")).symlink_to(other)
    found = gc(store)
    assert found.removed == ()
    assert [reason for _, reason in found.kept] == [found.kept[0][1]]
    assert "less than" in found.kept[0][1]
    assert working.exists()
    assert (foreign / "notes.txt").read_text() == "mine"
    assert link.is_symlink()


def test_a_frozen_store_is_cleaned_up_beside_and_not_inside(store, tmp_path):
    freeze(store, tmp_path / "frozen")
    with open_store(tmp_path / "frozen") as frozen:
        folder = left_behind(frozen)
        assert len(gc(frozen).removed) == 1
        assert not folder.exists()


def test_a_store_without_its_catalogue_says_what_is_lost(store, tmp_path):
    path = store.path
    (path / "catalogue.db").unlink()
    for attempt in (
        lambda: open_store(path),
        lambda: create(path, images=tmp_path, plan=PlanOptions(num_crops=4)),
    ):
        with pytest.raises(DamagedShard, match=r"no catalogue\.db.*restore it from a copy"):
            attempt()
    with pytest.raises(StoreNotFound):
        open_store(tmp_path)
    with pytest.raises(ConflictError, match="exists already"):
        create(tmp_path, images=tmp_path, plan=PlanOptions(num_crops=4))


@pytest.mark.parametrize("data", [b"", b"SQLite format 3\0"])
def test_an_emptied_catalogue_is_damage(store, data):
    (store.path / "catalogue.db").write_bytes(data)
    with pytest.raises(DamagedShard, match="catalogue"):
        open_store(store.path)
