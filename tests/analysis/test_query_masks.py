"""Masks by conditions: computed as the table of crops says, kept with their rule, extended and repaired by it."""

from __future__ import annotations

import numpy as np
import pytest

import labelstore
from labelstore.calibration import Region, RegionQuery, RegionThresholds, preview, rule_from_record
from labelstore.codecs import Hard, MarginalSmoothing
from labelstore.errors import ConflictError, UsageError
from tests.analysis.conftest import soft_labels

SMALL = RegionQuery(discard="area < 0.3 and max_probability < 0.5", harden="not agrees")


def codes_of(mask):
    return np.concatenate([mask.regions(block) for block in mask.blocks])


def test_regions_are_the_crops_of_the_conditions(make_store):
    store = make_store(soft_labels(), bad={3})
    labels = store.label_set()
    counted = preview(labels, {"small": SMALL})
    assert store.masks == (), "a preview writes nothing"
    mask = labelstore.calibrate(labels, SMALL, name="small")
    expected = np.full((24, 12), Region.IMPORTANT, np.uint8)
    # what is discarded is discarded, whatever else holds
    for condition, region in ((SMALL.harden, Region.HARD), (SMALL.discard, Region.TOO_HARD)):
        found = labelstore.crops(labels, ["image", "crop"], where=condition)
        expected[found.image, found.crop] = region
    expected[3] = Region.MISSING
    assert (codes_of(mask) == expected).all()
    counts = counted.choices[0].counts
    assert [counts.too_hard, counts.hard, counts.important, counts.too_easy, counts.missing] == [
        np.count_nonzero(expected == code) for code in (0, 1, 2, 3, 255)
    ]
    assert counted.to_record()["choices"][0]["rule"] == SMALL.to_record()
    # the ledger's rule is what was asked for, and asking again finds everything done
    assert rule_from_record(store.mask("small").rule) == SMALL
    assert labelstore.calibrate(labels, SMALL, name="small").is_complete
    with pytest.raises(ConflictError):
        labelstore.calibrate(labels, RegionQuery(discard="flip"), name="small")
    with pytest.raises(ConflictError):
        labelstore.calibrate(labels, RegionThresholds(), name="small")


def test_a_rule_and_its_record_are_one(make_store):
    for rule in (SMALL, RegionQuery(harden="flip", epsilon=0.2), RegionThresholds(low=0.1)):
        assert rule_from_record(rule.to_record()) == rule
    assert SMALL.calibrates
    assert not RegionQuery(discard="flip").calibrates


@pytest.mark.slow
def test_slabs_make_no_difference(make_store, monkeypatch):
    labels = make_store(soft_labels()).label_set()
    whole = codes_of(labelstore.calibrate(labels, SMALL, name="whole"))
    monkeypatch.setattr("labelstore.blocks.crop_slab.SLAB_VALUES", 1)
    assert (codes_of(labelstore.calibrate(labels, SMALL, name="parts")) == whole).all()


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({}, "needs `discard` or `harden`"),
        ({"discard": "area <"}, "is missing"),
        ({"discard": "region = 'HARD'"}, "would change with the mask"),
        ({"harden": "flip", "epsilon": 1.0}, "below 1"),
        ({"harden": "flip", "epsilon": float("nan")}, "below 1"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule, problem):
    with pytest.raises(UsageError, match=problem):
        RegionQuery(**rule)


def test_what_labels_do_not_keep_is_refused(make_store):
    labels = make_store(soft_labels(), Hard()).label_set()
    for condition in ("max_probability < 0.5", "entropy > 1", "ground_truth_probability < 0.1"):
        with pytest.raises(UsageError, match="does not keep the teacher's probabilities"):
            labelstore.calibrate(labels, RegionQuery(discard=condition), name="m")
    assert labels.store.masks == ()
    by_area = labelstore.calibrate(labels, RegionQuery(discard="area < 0.3"), name="area")
    assert {int(code) for code in np.unique(codes_of(by_area))} == {0, 2}


def test_hardening_needs_a_ground_truth(make_store):
    truth = np.full(4, -1)
    labels = make_store(soft_labels(images=4), ground_truth=truth).label_set()
    for rule in (RegionQuery(harden="flip"), RegionQuery(discard="not agrees")):
        with pytest.raises(UsageError, match="4 of 4 images have no ground truth"):
            labelstore.calibrate(labels, rule, name="m")
    labelstore.calibrate(labels, RegionQuery(discard="area < 0.2"), name="m")


def test_thresholds_that_leave_nothing_are_refused(make_store):
    labels = make_store(soft_labels(images=4), MarginalSmoothing(k=2)).label_set()
    nothing = RegionThresholds(low=0.0, middle=0.0, top=0.0)
    for refused in (
        lambda: labelstore.calibrate(labels, nothing, name="m"),
        lambda: preview(labels, {"m": nothing}),
    ):
        with pytest.raises(UsageError, match="every crop would be discarded"):
            refused()
    labelstore.calibrate(labels, RegionThresholds(low=0.0, middle=0.0, top=0.5), name="m")
