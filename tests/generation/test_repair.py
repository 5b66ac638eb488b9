"""Repair makes exactly the damaged shards again, bit for bit, from images, plan and labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import labelstore
from labelstore import MarginalSmoothing
from labelstore.care.repairing import repair
from labelstore.care.verification import verify
from labelstore.errors import ConflictError, RejectedInput, UsageError
from labelstore.store import open_store
from tests.flat_options import label_images
from tests.generation.conftest import write_photographs, write_teacher

CHOICES = {"device": "cpu", "workers": 2, "batch_size": 16}


@pytest.fixture(scope="module", params=["zarr", "hdf5"])
def made(tmp_path_factory, photographs, run_folder, request) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    label_images(
        path,
        images=photographs,
        teacher=str(run_folder),
        codec=MarginalSmoothing(k=2),
        num_crops=8,
        images_per_shard=8,
        crops_per_shard=4,
        backend=request.param,
        **CHOICES,
    )
    with labelstore.open(path) as store:
        labelstore.calibrate(store.label_set(), name="ferkd")
    return path


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made, tmp_path / "store")
    with open_store(tmp_path / "store", checked=False) as store:
        yield store


def files_of(folder: Path) -> dict[str, bytes]:
    root = next(folder.glob("arrays*"))
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def damage(store, *kinds: str) -> set[str]:
    """Spoil one file of a shard of each kind; returns the files."""
    keys = set()
    for kind in kinds:
        (name,) = [name for name in store.group_names() if name.startswith(kind)]
        row = store.catalogue.ledger.shards(name)[3]
        key = row.files[-1].key
        path = store.arrays.root / key
        path.write_bytes(path.read_bytes()[:-7])
        keys.add(key)
    return keys


@pytest.mark.sample(1)
def test_damaged_shards_come_back_bit_for_bit_and_nothing_else_is_touched(store, photographs, made):
    keys = damage(store, "labels", "crops", "masks")
    top = store.arrays.root / ("zarr.json" if store.arrays.name == "zarr" else "arrays.json")
    top.write_bytes(b"{}")
    times = {path: path.stat().st_mtime_ns for path in store.arrays.root.rglob("*")}
    planned = repair(store, dry_run=True)
    assert {key for shard in planned.shards for key in shard.files} == keys
    assert not verify(store).is_sound
    report = repair(store, images=photographs, **CHOICES)
    assert report.metadata == (top.name,)
    assert {key for shard in report.shards for key in shard.files} == keys
    assert all(shard.same_bytes for shard in report.shards)
    assert verify(store, "deep").is_sound
    assert files_of(store.path) == files_of(made)
    changed = {
        path.relative_to(store.arrays.root).as_posix()
        for path, then in times.items()
        if path.is_file() and path.stat().st_mtime_ns != then
    }
    assert changed == keys | {top.name}
    assert store.catalogue.leases.live() == []
    assert repair(store).shards == ()


@pytest.mark.sample(1)
def test_crops_masks_and_metadata_need_no_images(store, photographs):
    damage(store, "crops", "masks")
    assert len(repair(store).shards) == 2
    assert verify(store).is_sound
    damage(store, "labels")
    away = photographs.rename(photographs.with_name("away"))
    try:
        with pytest.raises(UsageError, match="`images=DIR` is needed"):
            repair(store)
    finally:
        away.rename(photographs)
    assert len(repair(store).shards) == 1  # the folder that was recorded with the label set


@pytest.mark.sample(1)
def test_other_weights_and_changed_images_are_refused(store, photographs, tmp_path):
    damage(store, "labels")
    before = files_of(store.path)
    other = write_teacher(tmp_path / "other", seed=9)
    with pytest.raises(ConflictError, match="weights"):
        repair(store, images=photographs, teacher=str(other), **CHOICES)
    changed = write_photographs(tmp_path / "changed")
    for path in changed.rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(RejectedInput, match="changed"):
        repair(store, images=changed, **CHOICES)
    assert files_of(store.path) == before


def test_a_block_that_is_leased_is_left_alone(store, photographs):
    damage(store, "labels")
    (name,) = [name for name in store.group_names() if name.startswith("labels")]
    store.catalogue.leases.acquire(name, [1], "somebody else", 60, done=99)
    before = files_of(store.path)
    with pytest.raises(ConflictError, match="leased to"):
        repair(store, images=photographs, **CHOICES)
    assert files_of(store.path) == before


@pytest.mark.sample(1)
def test_files_that_would_not_fit_each_other_are_replaced_only_together(
    store, photographs, monkeypatch
):
    if store.arrays.name == "hdf5":
        pytest.skip("a shard is one file there")
    from labelstore.teachers.labeller import Labeller

    keys = damage(store, "labels")
    once = Labeller.__call__

    def elsewhere(self, pixels):
        labels = once(self, pixels)
        return labels | {"probs": labels["probs"] * 0.9, "tail": 1 - 0.9 * (1 - labels["tail"])}

    monkeypatch.setattr(Labeller, "__call__", elsewhere)
    before = files_of(store.path)
    with pytest.raises(ConflictError, match="`whole_shards`"):
        repair(store, images=photographs, **CHOICES)
    assert files_of(store.path) == before
    (shard,) = repair(store, images=photographs, whole_shards=True, **CHOICES).shards
    assert keys < set(shard.files)
    assert not shard.same_bytes
    assert verify(store, "deep").is_sound


@pytest.mark.sample(1)
def test_the_command(store, photographs, labelstore_command):
    damage(store, "labels")

    assert labelstore_command("verify", store.path)[0] == 3
    code, out, _ = labelstore_command("repair", store.path, "--dry-run", "--json")
    assert code == 0
    assert len(json.loads(out)["shards"]) == 1
    assert labelstore_command("verify", store.path)[0] == 3
    more = ["--device", "cpu", "--workers", "2", "--batch-size", "16"]
    code, out, err = labelstore_command("repair", store.path, "--images", photographs, *more)
    assert code == 0, err
    assert "as it was" in out
    assert labelstore_command("verify", store.path, "--deep")[0] == 0
