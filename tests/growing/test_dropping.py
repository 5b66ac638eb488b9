"""What is dropped is gone, files and all; a kill on the way leaves no ledger row without bytes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore.calibration import RegionThresholds, calibrate
from labelstore.care import dropping
from labelstore.care.dropping import drop, what_drops
from labelstore.codecs import Full, Hard, MarginalRenorm
from labelstore.errors import ConflictError, UsageError
from labelstore.labelling.deriving import derive
from tests.kept_stores import kept_store

RULE = RegionThresholds(low=0.2, middle=0.3, top=0.9)


@pytest.fixture(params=["zarr", "hdf5"])
def store(request, tmp_path):
    logits = np.random.default_rng(0).normal(0, 3, (20, 6, 8))
    dense = np.exp(logits)
    dense = (dense / dense.sum(-1, keepdims=True)).astype(np.float32)
    options = {"images_per_shard": 8, "crops_per_shard": 3, "backend": request.param}
    with kept_store(tmp_path / "s", dense, Full(), **options) as opened:
        derive(opened.label_set(), MarginalRenorm(k=3), name="mr")
        calibrate(opened.label_set("teacher"), RULE, name="ferkd")
        yield opened


def paths(store):
    return {str(path.relative_to(store.path)) for path in store.path.rglob("*") if path.is_file()}


def everything_named_is_there(store):
    for group in store.group_names():
        specs, _ = store.group_specs(group)
        for row in store.catalogue.ledger.shards(group):
            place = (row.block, row.crop_shard)
            assert store.arrays.verify(specs, place, row.files, "deep") == []


@pytest.mark.sample(1)
def test_a_dropped_label_set_leaves_nothing(store):
    before = {name for name in paths(store) if "labels/mr/" not in name}
    assert drop(store, "label-set", "mr").shards == 6
    assert store.label_sets == ("teacher",)
    assert paths(store) == before
    assert store.catalogue.ledger.shards("labels/mr") == []
    everything_named_is_there(store)
    store.catalogue.verify_digests()
    variant = derive(store.label_set(), MarginalRenorm(k=3), name="mr")
    assert variant.is_complete
    assert max(row.fence for row in store.catalogue.ledger.shards("labels/mr")) > 1


@pytest.mark.sample(1)
def test_masks_and_plans(store):
    with pytest.raises(ConflictError, match="used by mr, teacher, ferkd"):
        drop(store, "plan", "plan")
    drop(store, "mask", "ferkd")
    drop(store, "label-set", "mr")
    drop(store, "label-set", "teacher")
    assert drop(store, "plan", "plan").shards == 6
    assert store.group_names() == ()
    assert {name.partition("/")[2] for name in paths(store)} <= {"", "zarr.json", "arrays.json"}
    store.catalogue.verify_digests()


@pytest.mark.sample(1)
def test_a_label_set_that_masks_still_need_is_said(store):
    drop(store, "label-set", "mr")
    assert what_drops(store, "label-set", "teacher").notes == (
        "mask ferkd then has no label set of its teacher",
    )


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["label-set", "mask", "plan"])
def test_unknown_names_are_refused(store, kind):
    for name in ("other", "..", "../../outside", ""):
        with pytest.raises(UsageError, match=r"no .* named"):
            drop(store, kind, name)
    with pytest.raises(UsageError, match="choose one of"):
        drop(store, "teacher", "teacher")


@pytest.mark.sample(1)
def test_a_label_set_that_is_being_written_is_left_alone(store):
    store.catalogue.label_sets.add(
        labelstore.store.store.LabelSetRow(
            name="new",
            plan="plan",
            teacher="teacher",
            num_classes=8,
            codec=Hard().to_record(),
            uuid="u",
        )
    )
    store.write_metadata()
    lease = store.catalogue.leases.acquire("labels/new", 3, "somebody", 60.0, 2)
    with pytest.raises(ConflictError, match="being written by somebody"):
        drop(store, "label-set", "new")
    store.catalogue.leases.release(lease)
    drop(store, "label-set", "new")


@pytest.mark.slow
@pytest.mark.parametrize("at", ["catalogue", "metadata", "files", "trash"])
def test_killed_on_the_way(store, monkeypatch, at):
    def killed(*_args, **_options):
        raise KeyboardInterrupt

    where = {
        "catalogue": (type(store.catalogue.groups), "drop"),
        "metadata": (type(store), "write_metadata"),
        "files": (dropping, "_remove_files"),
        "trash": (shutil, "rmtree"),
    }[at]
    with monkeypatch.context() as patch:
        patch.setattr(*where, killed)
        with pytest.raises(KeyboardInterrupt):
            drop(store, "label-set", "mr")
    with labelstore.open(store.path) as again:
        everything_named_is_there(again)
        assert ("mr" in again.label_sets) == (at == "catalogue")
        assert again.label_set("teacher").is_complete
        if at != "trash":
            drop(again, "label-set", "mr")
        derive(again.label_set("teacher"), MarginalRenorm(k=3), name="mr")
        everything_named_is_there(again)


@pytest.mark.slow
def test_files_of_a_label_set_made_again_meanwhile_stay(store, monkeypatch):
    remove = dropping._remove_files

    def remade(store, group):
        derive(store.label_set("teacher"), MarginalRenorm(k=3), name="mr")
        remove(store, group)

    monkeypatch.setattr(dropping, "_remove_files", remade)
    drop(store, "label-set", "mr")
    assert store.label_set("mr").is_complete
    everything_named_is_there(store)


@pytest.mark.slow
def test_the_command(store, capsys):
    def run(*arguments):
        code = errors.run(labelstore_app.commands, "labelstore", ["drop", *map(str, arguments)])
        return code, *capsys.readouterr()

    before = paths(store)
    code, out, _ = run("label-set", "mr", store.path, "--dry-run")
    assert code == 0
    assert out.startswith("would drop label-set mr")
    code, _, err = run("label-set", "mr", store.path)
    assert code == 2
    assert "--yes" in err
    assert paths(store) == before
    code, out, _ = run(store.path, "label-set", "mr", "--yes", "--json")
    assert code == 0
    assert json.loads(out)["shards"] == 6
    code, _, err = run("plan", "plan", store.path, "--yes")
    assert code == 5
    assert err.count("\n") == 1
    code, _, err = run("mask", "other", store.path, "--yes")
    assert code == 2
