"""A mask holds codes of one set of labels, also where a label set was dropped and its name given again."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import labelstore
from labelstore.calibration import RegionThresholds, calibrate, check_update, masking, update
from labelstore.care.dropping import drop
from labelstore.care.repairing import repair
from labelstore.codecs import MarginalSmoothing
from labelstore.commit.label_set_rows import origin_mark, origins
from labelstore.errors import ConflictError
from labelstore.sharing.merge import merge
from labelstore.testing.filled_store import add_label_set, fill_blocks
from tests.kept_stores import kept_store

CODEC = MarginalSmoothing(k=2, dtype="float32", class_ids="plain")
OLD = np.random.default_rng(0).dirichlet(np.full(6, 0.3), (8, 4)).astype(np.float32)
NEW = np.random.default_rng(1).dirichlet(np.full(6, 3.0), (8, 4)).astype(np.float32)
RULE = RegionThresholds(low=0.4, middle=0.5, top=0.9)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A store whose first of two image blocks is labelled, and a mask of it."""
    path = tmp_path_factory.mktemp("anew") / "s.labels"
    with kept_store(path, OLD, CODEC, images_per_shard=4, blocks=[0]) as store:
        calibrate(store.label_set(), RULE, name="m")
    return path


def make_anew(store, labels=NEW):
    drop(store, "label-set", "teacher")
    add_label_set(store, CODEC, 6, name="teacher")
    fill_blocks(store, labels, name="teacher")
    return store.label_set("teacher")


def codes(store, name="m"):
    return np.concatenate([store.mask(name).regions(block) for block in store.mask(name).blocks])


def rule_of(labels):
    return RULE.regions(labels.max(axis=-1))


def test_the_ledger_says_which_labels_a_masks_codes_are_of(store):
    (shard,) = store.catalogue.ledger.shards("masks/m")
    row = store.label_set_row("teacher")
    assert shard.device == origin_mark(row)
    assert origins(shard.device) == [row.uuid]
    assert origins(f"{shard.device}, {shard.device}") == [row.uuid] * 2
    assert origins("") == origins("NVIDIA H100") == []


def test_a_mask_begun_on_dropped_labels_is_not_finished_with_others(store):
    labels = make_anew(store)
    before = codes(store)
    assert (before != rule_of(NEW)[:4]).any()
    for again in (
        lambda: calibrate(labels, RULE, name="m"),
        lambda: update(store, "m"),
        lambda: check_update(store, "m", labels),
    ):
        with pytest.raises(ConflictError, match="was made from a label set that was dropped"):
            again()
    np.testing.assert_array_equal(codes(store), before)
    np.testing.assert_array_equal(codes(store), rule_of(OLD)[:4])
    drop(store, "mask", "m")
    calibrate(labels, RULE, name="m")
    np.testing.assert_array_equal(codes(store), rule_of(NEW))


def test_nor_does_a_whole_one_pass_for_one_of_the_new_labels(store):
    fill_blocks(store, OLD, name="teacher")
    assert calibrate(store.label_set(), RULE, name="m").is_complete
    labels = make_anew(store)
    with pytest.raises(ConflictError, match="choose another `name`"):
        calibrate(labels, RULE, name="m")


def test_one_whose_label_set_was_only_finished_goes_on(store):
    fill_blocks(store, OLD, name="teacher")
    calibrate(store.label_set(), RULE, name="m")
    np.testing.assert_array_equal(codes(store), rule_of(OLD))


def test_a_mask_of_an_earlier_version_says_nothing_and_goes_on(template, tmp_path, monkeypatch):
    shutil.copytree(template, tmp_path / "s.labels")
    with labelstore.open(tmp_path / "s.labels") as store:
        drop(store, "mask", "m")
        with monkeypatch.context() as earlier:
            earlier.setattr(masking, "origin_mark", lambda row: "")
            calibrate(store.label_set(), RULE, name="m")
        labels = make_anew(store, OLD)
        calibrate(labels, RULE, name="m")
        np.testing.assert_array_equal(codes(store), rule_of(OLD))
        assert [shard.device for shard in store.catalogue.ledger.shards("masks/m")] == [
            "",
            origin_mark(labels.row),
        ]


def test_another_label_set_of_the_teacher_may_be_chosen_to_finish_it(store):
    add_label_set(store, CODEC, 6, name="second", teacher="teacher")
    fill_blocks(store, OLD, name="second")
    drop(store, "label-set", "teacher")
    update(store, "m", store.label_set("second"))
    np.testing.assert_array_equal(codes(store), rule_of(OLD))


def damage(store, block):
    shard = store.catalogue.ledger.shards("masks/m")[block]
    path = store.arrays.root / shard.files[0].key
    path.write_bytes(b"")
    return path


def test_repair_takes_the_labels_that_the_codes_were_made_from(store):
    fill_blocks(store, OLD, name="teacher")
    add_label_set(store, CODEC, 6, name="second", teacher="teacher")
    fill_blocks(store, NEW, name="second")
    update(store, "m", store.label_set("second"))
    mixed = np.concatenate([rule_of(OLD)[:4], rule_of(NEW)[4:]])
    damage(store, 1)
    repair(store)
    np.testing.assert_array_equal(codes(store), mixed)


def test_repair_does_not_make_codes_of_dropped_labels_from_others(store):
    make_anew(store)
    path = damage(store, 0)
    with pytest.raises(ConflictError, match="was made from a label set that was dropped"):
        repair(store)
    assert path.read_bytes() == b""


@pytest.mark.slow
def test_a_merged_mask_is_of_the_merged_labels(template, tmp_path):
    shutil.copytree(template, tmp_path / "a")
    with kept_store(tmp_path / "c", OLD, CODEC, images_per_shard=4) as whole:
        calibrate(whole.label_set(), RULE, name="m")
    merge(tmp_path / "out", [tmp_path / "a", tmp_path / "c"])
    with labelstore.open(tmp_path / "out") as out:
        marks = {shard.device for shard in out.catalogue.ledger.shards("masks/m")}
        assert marks == {origin_mark(out.label_set_row("teacher"))}
        assert calibrate(out.label_set(), RULE, name="m").is_complete
        labels = make_anew(out)
        with pytest.raises(ConflictError, match="was dropped"):
            calibrate(labels, RULE, name="m")
