"""Masks in a real store: right codes, through the ledger, resumable, refused where they mean nothing."""

from __future__ import annotations

import numpy as np
import pytest

import labelstore
from labelstore.calibration import (
    Region,
    RegionQuantiles,
    RegionThresholds,
    calibrate,
    exact_quantiles,
)
from labelstore.codecs import Full, Hard, MarginalRenorm, MarginalSmoothing
from labelstore.commit import block_jobs
from labelstore.errors import ConflictError, IncompleteError, UsageError
from labelstore.testing.filled_store import fill_blocks

RULE = RegionThresholds(low=0.25, middle=0.40, top=0.95)


def all_regions(mask):
    return np.concatenate([mask.regions(block) for block in mask.blocks])


@pytest.mark.sample(1)
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_a_mask_holds_the_rules_regions_of_every_crop(make_store, p_max, backend):
    store = make_store(p_max, images_per_shard=8, crops_per_shard=5, bad={3}, backend=backend)
    mask = calibrate(store.label_set(), RULE, name="ferkd")
    expected = RULE.regions(p_max)
    expected[3] = Region.MISSING
    assert mask.is_complete
    np.testing.assert_array_equal(all_regions(mask), expected)
    assert set(np.unique(expected)) == set(Region)
    reopened = labelstore.open(store.path)
    np.testing.assert_array_equal(all_regions(reopened.mask("ferkd")), expected)
    assert reopened.mask().rule == RULE.to_record()
    assert (mask.row.teacher, mask.row.label_set, mask.row.num_crops) == ("teacher", "teacher", 10)
    reopened.close()


def test_wide_labels_are_walked_by_column_with_the_same_mask(make_store, p_max, full, monkeypatch):
    p_max = np.tile(p_max, (1, 4))  # 40 crops: two chunk columns
    store = make_store(p_max, codec=full, images_per_shard=8)
    whole = calibrate(store.label_set(), RULE, name="whole")
    monkeypatch.setattr("labelstore.blocks.crop_slab.SLAB_VALUES", 1)
    shapes = []
    regions = RegionThresholds.regions
    monkeypatch.setattr(
        RegionThresholds,
        "regions",
        lambda self, probability: shapes.append(probability.shape) or regions(self, probability),
    )
    sliced = calibrate(store.label_set(), RULE, name="sliced")
    np.testing.assert_array_equal(all_regions(whole), all_regions(sliced))
    np.testing.assert_array_equal(all_regions(whole), RULE.regions(p_max))
    assert sorted(shapes[:6]) == [(4, 20)] * 2 + [(8, 20)] * 4  # 20 images in blocks of 8
    middle = np.sort(p_max, axis=None)[399]
    assert exact_quantiles(store.label_set(), [0.5]) == pytest.approx([middle], rel=1e-6)


def test_the_ground_truths_probability_is_judged_on_request(make_store, p_max):
    truth = np.zeros(20, int)
    truth[5] = 4
    rule = RegionThresholds(low=0.25, middle=0.4, criterion="ground_truth_probability")
    store = make_store(p_max, ground_truth=truth)
    regions = all_regions(calibrate(store.label_set(), rule, name="truth"))
    np.testing.assert_array_equal(np.delete(regions, 5, 0), rule.regions(np.delete(p_max, 5, 0)))
    assert (regions[5] == Region.TOO_HARD).all()


def test_done_is_done_and_another_rule_is_a_conflict(make_store, p_max, monkeypatch):
    store = make_store(p_max, images_per_shard=8)
    calibrate(store.label_set(), RULE, name="ferkd")
    monkeypatch.setattr(block_jobs, "stage_block", None)
    assert calibrate(store.label_set(), RULE, name="ferkd").is_complete
    with pytest.raises(ConflictError, match="ferkd"):
        calibrate(store.label_set(), RegionThresholds(), name="ferkd")


def test_a_stopped_calibration_goes_on_where_it_was(make_store, p_max, monkeypatch):
    store = make_store(p_max, images_per_shard=8)
    stage, written = block_jobs.stage_block, []

    def stops(store, lease, *args, **options):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(lease.block)
        return stage(store, lease, *args, **options)

    monkeypatch.setattr(block_jobs, "stage_block", stops)
    with pytest.raises(KeyboardInterrupt):
        calibrate(store.label_set(), RULE, name="ferkd")
    assert len(store.catalogue.ledger.shards("masks/ferkd")) == 1

    def goes_on(store, lease, *args, **options):
        written.append(lease.block)
        return stage(store, lease, *args, **options)

    monkeypatch.setattr(block_jobs, "stage_block", goes_on)
    mask = calibrate(store.label_set(), RULE, name="ferkd")
    assert sorted(written) == [0, 1, 2], "a block was computed twice, or its lease was not let go"
    np.testing.assert_array_equal(all_regions(mask), RULE.regions(p_max))


def test_quantiles_become_thresholds_that_the_mask_keeps(make_store, p_max):
    store = make_store(p_max, images_per_shard=8)
    rule = RegionQuantiles(low=0.1, middle=0.3, top=0.8)
    mask = calibrate(store.label_set(), rule, name="shares")
    ordered = np.sort(p_max, axis=None)
    assert mask.rule["quantiles"] == {"low": 0.1, "middle": 0.3, "top": 0.8}
    assert [mask.rule[name] for name in ("low", "middle", "top")] == ordered[[19, 59, 159]].tolist()
    codes = RegionThresholds.from_record(mask.rule).regions(p_max)
    np.testing.assert_array_equal(all_regions(mask), codes)
    assert calibrate(store.label_set(), rule, name="shares").rule == mask.rule
    with pytest.raises(ConflictError):
        calibrate(store.label_set(), RegionQuantiles(low=0.2, middle=0.3), name="shares")


def test_an_unfinished_label_set_takes_thresholds_now_and_the_rest_later(make_store, p_max):
    store = make_store(p_max, images_per_shard=8, blocks=[0, 2])
    with pytest.raises(IncompleteError, match="2 of 3 image blocks"):
        calibrate(store.label_set(), RegionQuantiles(), name="shares")
    assert store.masks == ()
    mask = calibrate(store.label_set(), RULE, name="ferkd")
    assert mask.blocks == (0, 2)
    dense = np.empty((*p_max.shape, 6), np.float32)
    dense[..., 0] = p_max
    dense[..., 1:] = ((1 - p_max) / 5)[..., None]
    fill_blocks(store, dense, name="teacher")
    mask = calibrate(store.label_set(), RULE, name="ferkd")
    assert mask.is_complete
    np.testing.assert_array_equal(all_regions(mask), RULE.regions(p_max))


@pytest.mark.parametrize("codec", [Hard(), MarginalRenorm(k=2)])
def test_labels_without_the_teachers_probabilities_are_refused(make_store, p_max, codec):
    labels = make_store(p_max, codec=codec).label_set()
    with pytest.raises(UsageError, match="does not keep the teacher's probabilities"):
        calibrate(labels, name="ferkd")


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "codec",
    [Full(), MarginalSmoothing(k=1), MarginalSmoothing(k=2, dtype="uint8"), MarginalRenorm(k=6)],
)
def test_labels_with_them_are_taken(make_store, p_max, codec):
    assert calibrate(make_store(p_max, codec=codec).label_set(), name="ferkd").is_complete


def test_images_without_ground_truth_cannot_be_calibrated_but_discarded(make_store, p_max):
    truth = np.zeros(20, int)
    truth[4] = -1
    labels = make_store(p_max, ground_truth=truth).label_set()
    with pytest.raises(UsageError, match="1 of 20 images have no ground truth"):
        calibrate(labels, RULE, name="ferkd")
    rule = RegionThresholds(low=0.25, middle=0.25, top=0.95)
    regions = all_regions(calibrate(labels, rule, name="discard"))
    assert Region.HARD not in regions


def test_progress_counts_crops(make_store, p_max):
    told = []
    labels = make_store(p_max, images_per_shard=8).label_set()
    calibrate(labels, RULE, name="ferkd", progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, 200)
    assert told[-1] == (200, 200)
    assert told == sorted(told)


def test_two_workers_share_the_blocks_and_one_waits_for_the_other(make_store, p_max, monkeypatch):
    store = make_store(p_max, images_per_shard=4)
    calibrate(
        store.label_set(), RULE, name="first"
    )  # makes the second mask's rows cheap to compare
    stage, held = block_jobs.stage_block, []

    def while_the_other_works(here, lease, *args, **options):
        if not held:
            held.append(here.catalogue.leases.acquire(lease.group, [4], "another", 1.0, 1))
        return stage(here, lease, *args, **options)

    monkeypatch.setattr(block_jobs, "stage_block", while_the_other_works)
    monkeypatch.setattr("labelstore.commit.worker.POLL_SECONDS", 0.05)
    mask = calibrate(store.label_set(), RULE, name="second")
    assert held[0].block == 4
    assert mask.is_complete, "the lease of a worker that died was not taken over"
    np.testing.assert_array_equal(all_regions(mask), RULE.regions(p_max))
