"""FerKD Eq. 4: region codes of probabilities, and what calibration does to a label."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.calibration import Region, RegionQuantiles, RegionThresholds, calibrate_label
from labelstore.codecs import densify, top_k
from labelstore.codecs.base import SparseLabels
from labelstore.errors import UsageError

share = st.floats(0, 1, width=32)


def region_of(p, low, middle, top):
    """Eq. 4 as it is written."""
    if np.isnan(p):
        return Region.MISSING
    if p < low:
        return Region.TOO_HARD
    if p > top:
        return Region.TOO_EASY
    return Region.HARD if p < middle else Region.IMPORTANT


@given(st.lists(share, min_size=3, max_size=3), st.lists(share | st.just(float("nan")), min_size=1))
def test_regions_are_eq_4(thresholds, values):
    low, middle, top = sorted(thresholds)
    rule = RegionThresholds(low=low, middle=middle, top=top)
    values = np.array([*values, low, middle, top], np.float32)
    expected = [region_of(p, low, middle, top) for p in values]
    codes = rule.regions(values[None])
    assert codes.shape == (1, len(values))
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes[0], expected)


def test_a_probability_stored_as_float32_lies_on_a_threshold_of_the_same_decimal():
    codes = RegionThresholds().regions(np.array([0.15, 0.3, 0.95], np.float32))
    assert codes.tolist() == [Region.HARD, Region.IMPORTANT, Region.IMPORTANT]


@pytest.mark.parametrize("rule", [RegionThresholds, RegionQuantiles])
@pytest.mark.parametrize(
    "parameters",
    [
        {"low": 0.4, "middle": 0.3},
        {"middle": 0.96, "top": 0.95},
        {"low": -0.1},
        {"top": 1.01},
        {"low": float("nan")},
        {"epsilon": 1.0},
        {"epsilon": -0.1},
        {"criterion": "median"},
    ],
)
def test_parameters_that_make_no_sense_are_refused_in_one_line(rule, parameters):
    with pytest.raises(UsageError) as error:
        rule(**parameters)
    assert "\n" not in str(error.value)


def test_a_record_gives_the_rule_back():
    rule = RegionThresholds(low=0.1, middle=0.2, top=0.8, criterion="ground_truth_probability")
    record = json.loads(json.dumps(rule.to_record()))
    assert RegionThresholds.from_record(record) == rule
    assert RegionThresholds.from_record(record | {"quantiles": {"low": 0.5}}) == rule


def random_labels(seed, n, m, num_classes, k):
    rng = np.random.default_rng(seed)
    dense = rng.dirichlet(np.full(num_classes, 0.3), (n, m)).astype(np.float32)
    kept = top_k(dense, k)
    rest = kept.tail / max(num_classes - k, 1)
    return SparseLabels(class_ids=kept.class_ids, probs=kept.probs, rest=rest)


@given(st.integers(0, 1000), st.integers(2, 9), st.data())
def test_hard_labels_become_the_softened_ground_truth_and_others_stay(seed, num_classes, data):
    k = data.draw(st.integers(1, num_classes))
    epsilon = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    labels = random_labels(seed, 4, 6, num_classes, k)
    rng = np.random.default_rng(seed)
    regions = rng.choice(np.array([0, 1, 2, 3], np.uint8), (4, 6))
    truth = rng.integers(0, num_classes, 4)
    found = calibrate_label(labels, regions, truth[:, None], epsilon, num_classes)

    expected = densify(labels, num_classes)
    for i, j in np.argwhere(regions == Region.HARD):
        expected[i, j] = epsilon / (num_classes - 1)
        expected[i, j, truth[i]] = 1 - epsilon
    np.testing.assert_allclose(densify(found, num_classes), expected, atol=1e-6)
    ordered = np.sort(found.class_ids, axis=-1)
    assert (np.diff(ordered.astype(int), axis=-1) > 0).all(), "a class is listed twice"
    sums = found.probs.sum(-1) + (num_classes - k) * found.rest
    np.testing.assert_allclose(sums, 1, atol=1e-5)


def test_calibrating_changes_nothing_that_was_given():
    labels = random_labels(0, 2, 3, 5, 2)
    before = [array.copy() for array in (labels.class_ids, labels.probs, labels.rest)]
    calibrate_label(labels, np.ones((2, 3), np.uint8), np.array([[0], [1]]), 0.1, 5)
    for array, copy in zip((labels.class_ids, labels.probs, labels.rest), before, strict=True):
        np.testing.assert_array_equal(array, copy)
