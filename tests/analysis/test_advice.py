"""What `advise` counts is what `calibrate` does, for every rule, class and image."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import labelstore
from labelstore.analysis.advice import advise, example_crops
from labelstore.calibration import Region, RegionThresholds, preview
from labelstore.calibration.threshold_counts import compared, count_thresholds
from labelstore.codecs import Hard
from labelstore.errors import UsageError
from tests.analysis.conftest import soft_labels

GRID = {"low": (0.0, 0.3, 0.4), "middle": (0.3, 0.5), "top": (0.6, 0.9, 1.0)}


@pytest.mark.sample(1)
@pytest.mark.parametrize("criterion", ["max_probability", "ground_truth_probability"])
def test_counts_are_calibrations(make_store, criterion):
    sharp = soft_labels()
    sharp[:, :, :][7] = 0.95 * np.eye(7, dtype=np.float32)[0] + 0.05 / 7
    store = make_store(sharp, bad={3})
    labels = store.label_set()
    advice = advise(labels, **GRID, quantiles=[(0.05, 0.2, 0.9)], criterion=criterion)
    titles = [choice.title for choice in advice.choices]
    assert len(titles) == len(set(titles)) == 3 * 2 * 3 - 3 + 1
    assert advice.choices[-1].title == "quantiles 5 / 20 / 90 %"
    rules = {choice.title: choice.rule for choice in advice.choices}
    expected = {c.title: c.counts for c in preview(labels, rules).choices}
    assert {c.title: c.counts for c in advice.choices} == expected
    assert any(counts.images_without_crop for counts in expected.values())
    for number in (1, -1):
        choice = advice.choices[number]
        asked = choice.quantiles or choice.rule
        mask = labelstore.calibrate(labels, asked, name=f"m{number}")
        codes = np.concatenate([mask.regions(block) for block in mask.blocks])
        classes = labels.ground_truth[labels.present]
        for effect in advice.by_class(choice):
            own = codes[labels.present][classes == store.class_names.index(effect.name)]
            assert [effect.too_hard, effect.hard, effect.important, effect.too_easy] == [
                np.count_nonzero(own == region)
                for region in (Region.TOO_HARD, Region.HARD, Region.IMPORTANT, Region.TOO_EASY)
            ]
            assert effect.crops == own.size


def test_the_classes_hit_hardest_come_first(make_store):
    labels = soft_labels(images=14)
    labels[[2, 9]] = 1 / 7  # class 2 is never recognised
    advice = advise(
        make_store(labels).label_set(), low=[0.15], middle=[0.15], top=[1.0], quantiles=[]
    )
    (choice,) = advice.choices
    first, *_ = advice.hit_hardest(choice)
    assert (first.name, first.discarded_share) == ("class0002", 1.0)
    shares = [e.discarded_share + e.calibrated_share for e in advice.hit_hardest(choice, 7)]
    assert shares == sorted(shares, reverse=True)
    record = advice.to_record(per_class=True)
    assert json.loads(json.dumps(record)) == record
    assert sum(e["crops"] for e in record["choices"][0]["classes"]) == 14 * 12


def test_slabs_make_no_difference(store, monkeypatch):
    whole = advise(store.label_set(), **GRID)
    monkeypatch.setattr("labelstore.blocks.crop_slab.SLAB_VALUES", 1)
    parts = advise(store.label_set(), **GRID)
    assert [c.counts for c in parts.choices] == [c.counts for c in whole.choices]


def test_counts_at_any_threshold_are_numpys(store, table):
    values = [0.2, 0.35, 0.5, 0.999]
    found = count_thresholds(store.label_set(), values)
    probability = table.max_probability.to_numpy(np.float32)
    for i, value in enumerate(values):
        assert found.below[:, i].sum() == (probability < np.float32(value)).sum()
        assert found.above[:, i].sum() == (probability > np.float32(value)).sum()
    assert found.labelled.sum() == 23 * 12
    assert found.missing == 12
    assert found.images.sum() == 23


def test_examples_are_crops_of_their_region(store):
    rule = RegionThresholds(low=0.3, middle=0.5, top=0.8)
    found = example_crops(store.label_set(), rule, per_region=3)
    assert found.groupby("region").size().to_dict() == dict.fromkeys(
        ("TOO_HARD", "HARD", "IMPORTANT", "TOO_EASY"), 3
    )
    codes = rule.regions(found.max_probability.to_numpy())
    assert found.region.tolist() == [Region(code).name for code in codes]
    again = example_crops(store.label_set(), rule, per_region=3)
    assert found.equals(again)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"low": [], "quantiles": []}, "no rule to try"),
        (
            {"low": [0.5], "middle": [0.4], "top": [0.3]},
            "low 0.5, middle 0.4 and top 0.3 is in order",
        ),
        ({"low": [float("nan")]}, "low nan: a threshold is a probability"),
        ({"low": [-1.0]}, "low -1: a threshold is a probability, 0 to 1"),
        ({"quantiles": [(0.5, 0.4, 0.9)]}, "must be in order"),
        ({"low": np.linspace(0, 0.1, 300)}, "at most 2000"),
        ({"epsilon": 2.0}, "below 1"),
    ],
)
def test_grids_that_are_none_are_refused(store, arguments, problem):
    with pytest.raises(UsageError, match=problem):
        advise(store.label_set(), **arguments)


def test_labels_without_probabilities_are_refused(make_store):
    with pytest.raises(UsageError, match="does not keep"):
        advise(make_store(soft_labels(), Hard()).label_set())


def test_a_store_without_labels_counts_nothing(make_store):
    labels = make_store(soft_labels(images=4), blocks=[]).label_set()
    advice = advise(labels, quantiles=[])
    assert not advice.preview.is_complete
    assert {choice.counts.num_crops for choice in advice.choices} == {0}
    assert len(example_crops(labels, RegionThresholds())) == 0


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 0.25, 0.3, 0.5, 1.0, np.nan, 0.123]), min_size=3, max_size=3),
        max_size=4,
    ),
    st.lists(st.sampled_from([0.0, 0.25, 0.3, np.nextafter(0.3, 1), 0.5, 0.9, 1.0]), min_size=1, max_size=6),
)  # fmt: skip
def test_looking_up_is_comparing_with_each(rows, values):
    probability = np.array(rows, np.float32).reshape(-1, 3)
    values = sorted(values)
    below, above, labelled = compared(probability, values)
    for at, value in enumerate(values):
        np.testing.assert_array_equal(below[:, at], (probability < np.float32(value)).sum(1))
        np.testing.assert_array_equal(above[:, at], (probability > np.float32(value)).sum(1))
    np.testing.assert_array_equal(labelled, (~np.isnan(probability)).sum(1))
