"""Quantiles over a store are exact, deterministic, and split no ties."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.calibration import RegionQuantiles, exact_quantiles
from labelstore.calibration import quantiles as module
from labelstore.errors import NotGenerated, UsageError

shares = st.sampled_from([0.0, 0.001, 0.05, 0.07, 0.15, 0.5, 0.9, 0.95, 1.0])


def label_set(values, num_blocks):
    parts = np.array_split(np.asarray(values, np.float32), num_blocks)
    return SimpleNamespace(
        name="fake",
        blocks=tuple(range(num_blocks)),
        max_probabilities=lambda block, columns: iter([parts[block][None]]),
    )


probability = (
    st.floats(0, 1, width=32)
    | st.sampled_from([0.0, 0.5, 0.95, 0.99999994, 1.0])
    | st.sampled_from(np.linspace(0, 1, 40).astype(np.float16).astype(float).tolist())
)


@given(
    st.lists(probability, min_size=1, max_size=200), st.lists(shares, min_size=1), st.integers(1, 4)
)
def test_quantiles_are_those_of_the_sorted_crops(values, wanted, num_blocks):
    ordered = np.sort(np.array(values, np.float32))
    expected = [ordered[max(1, ceil(Fraction(str(q)) * len(ordered))) - 1] for q in wanted]
    with_gaps = [*values, float("nan"), -float("nan")]
    assert exact_quantiles(label_set(with_gaps, num_blocks), wanted) == expected


@given(st.lists(probability, min_size=1, max_size=200), st.tuples(shares, shares, shares))
def test_no_region_gets_more_than_its_share(values, wanted):
    low, middle, top = sorted(wanted)
    rule = RegionQuantiles(low=low, middle=middle, top=top).thresholds(label_set(values, 2))
    codes = rule.regions(np.array(values, np.float32))
    total = len(values)
    assert np.count_nonzero(codes == 0) <= low * total
    assert np.count_nonzero(codes <= 1) <= middle * total + 1e-9
    assert np.count_nonzero(codes == 3) <= (1 - top) * total + 1e-9


def test_a_sharp_teacher_loses_none_of_its_certain_crops():
    labels = label_set([*np.linspace(0.2, 0.9, 40), *[1.0] * 60], 3)
    rule = RegionQuantiles(low=0.05, middle=0.15, top=0.90).thresholds(labels)
    assert rule.top == 1.0
    assert (rule.regions(np.ones(5, np.float32)) == 2).all()


def test_values_without_low_bits_need_one_walk_only(monkeypatch):
    values = np.random.default_rng(0).random(500).astype(np.float16).astype(np.float32)
    expected = exact_quantiles(label_set(values.astype(float), 3), [0.3])
    monkeypatch.setattr(module, "_fine", None)
    assert exact_quantiles(label_set(values, 3), [0.3]) == expected


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="between 0 and 1"):
        exact_quantiles(label_set([0.5], 1), [90])
    with pytest.raises(NotGenerated, match="no labels yet"):
        exact_quantiles(label_set([float("nan")], 1), [0.5])
