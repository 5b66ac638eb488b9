"""Tables of crops: equal to a table made crop by crop, whatever is asked for, and read from no more than it needs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import labelstore
from labelstore.analysis.arrow_batches import crop_batches
from labelstore.analysis.walk import crop_numbers
from labelstore.blocks.columns import COLUMNS
from labelstore.calibration import RegionThresholds
from labelstore.codecs import Full, Hard, MarginalRenorm, MarginalSmoothing
from labelstore.errors import UsageError
from tests.analysis.conftest import slow_table, soft_labels

ALL = [name for name, column in COLUMNS.items() if column.source != "mask"]


def assert_same(found, expected):
    assert list(found.columns) == list(expected.columns)
    assert len(found) == len(expected)
    for name in expected.columns:
        if COLUMNS[name].kind == "float":
            np.testing.assert_allclose(found[name], expected[name], atol=2e-5, err_msg=name)
        else:
            assert found[name].tolist() == expected[name].tolist(), name


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("codec", "stored"),
    [
        (MarginalSmoothing(k=5, dtype="float32"), False),
        (MarginalSmoothing(k=5, dtype="float32", class_ids="table"), True),
        (MarginalRenorm(k=6, dtype="float32"), True),
        (Full(dtype="float32"), True),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_every_column_is_what_the_labels_say(make_store, codec, stored):
    store = make_store(soft_labels(), codec, bad={3}, stored_crops=stored)
    labels = store.label_set()
    assert_same(labelstore.crops(labels, ALL), slow_table(labels)[ALL])


def test_columns_alone_are_as_columns_together(store):
    labels = store.label_set()
    together = labelstore.crops(labels, ALL)
    for name in ALL:
        alone = labelstore.crops(labels, [name])
        pd.testing.assert_frame_equal(alone, together[[name]])


def test_only_arrays_that_the_columns_need_are_read(make_store, monkeypatch):
    codec = MarginalSmoothing(k=5, dtype="float16", class_ids="table")
    labels = make_store(soft_labels(), codec).label_set()
    backend = type(labels.store.arrays)
    read, inner = set(), backend.read

    def watched(self, spec, *arguments, **options):
        read.add(spec.name)
        return inner(self, spec, *arguments, **options)

    monkeypatch.setattr(backend, "read", watched)
    needs = {
        "class": set(),
        "area": {"box"},
        "flip": {"flip"},
        "max_probability": {"probability", "tail_code"},
        "top1": {"class_rank", "class_table", "class_escape"},
    }
    for name, arrays in needs.items():
        read.clear()
        labelstore.crops(labels, [name])
        assert read == arrays, name


def test_images_conditions_and_blocks_choose_rows(store, table):
    labels = store.label_set()
    everything = table
    chosen = labelstore.crops(labels, ALL, images=[20, 3, 7], where="max_probability > 0.5")
    wanted = everything[everything.image.isin([7, 20]) & (everything.max_probability > 0.5)]
    assert_same(chosen, wanted)
    key = everything.key[0]
    assert labelstore.crops(labels, ["key"], images=[key])["key"].tolist() == [key] * 12
    frames = list(labelstore.crop_frames(labels, ["image", "crop", "top1"], where="crop < 4"))
    assert len(frames) == 3
    pd.testing.assert_frame_equal(
        pd.concat(frames, ignore_index=True),
        labelstore.crops(labels, ["image", "crop", "top1"], where="crop < 4"),
    )
    empty = labelstore.crops(labels, where="area > 2")
    assert len(empty) == 0
    assert empty.dtypes.equals(labelstore.crops(labels).head(0).dtypes)


def test_several_slabs_of_a_block_come_in_order(store, monkeypatch):
    labels = store.label_set()
    whole = labelstore.crops(labels)
    monkeypatch.setattr("labelstore.blocks.crop_slab.SLAB_VALUES", 1)
    pd.testing.assert_frame_equal(labelstore.crops(labels), whole)


@pytest.mark.parametrize("sample", [1, 5, 100, 275, 10_000, 0.1, 0.5])
def test_a_sample_has_the_size_asked_for_and_no_crop_twice(store, sample):
    labels = store.label_set()
    found = labelstore.crops(labels, ["image", "crop"], sample=sample)
    total = 23 * 12
    assert len(found) == min(total, round(sample * total) if sample < 1 else sample)
    assert not found.duplicated().any()
    assert found.equals(labelstore.crops(labels, ["image", "crop"], sample=sample))
    assert found.equals(found.sort_values(["image", "crop"], ignore_index=True))


def test_samples_depend_on_the_seed_and_obey_the_condition(store):
    labels = store.label_set()
    where = "max_probability > 0.6"
    matching = len(labelstore.crops(labels, ["crop"], where=where))
    found = labelstore.crops(labels, ["image", "max_probability"], where=where, sample=20)
    assert len(found) == min(20, matching)
    assert (found.max_probability > 0.6).all()
    assert len(labelstore.crops(labels, ["crop"], where=where, sample=10_000)) == matching
    one, other = (labelstore.crops(labels, sample=30, seed=seed) for seed in (0, 1))
    assert not one.equals(other)
    # a share is of all crops, and only then does the condition choose
    shared = labelstore.crops(labels, ["max_probability"], where=where, sample=0.5)
    every = labelstore.crops(labels, ["max_probability"], sample=0.5)
    assert len(shared) == (every.max_probability > 0.6).sum()


def test_every_crop_is_as_likely_as_any(make_store):
    labels = make_store(soft_labels(images=12, crops=6)).label_set()
    counts = np.zeros((12, 6))
    for seed in range(100):
        found = labelstore.crops(labels, ["image", "crop"], sample=18, seed=seed)
        counts[found.image, found.crop] += 1
    # 100 draws of a quarter: mean 25, standard deviation 4.3
    assert abs(counts - 25).max() < 22


def test_crop_numbers_are_spread():
    numbers = crop_numbers(np.arange(100_000), 3)
    assert len(np.unique(numbers)) == 100_000
    bins = np.histogram(numbers.astype(np.float64) / 2**64, 20, (0, 1))[0]
    assert abs(bins - 5000).max() < 400


def test_regions_are_the_masks(make_store):
    labels = make_store(soft_labels(), bad={3}).label_set()
    mask = labelstore.calibrate(labels, RegionThresholds(low=0.3, middle=0.5, top=0.9), name="m")
    found = labelstore.crops(labels, ["image", "crop", "region"], mask="m")
    codes = np.concatenate([mask.regions(block) for block in mask.blocks])
    names = np.array(["TOO_HARD", "HARD", "IMPORTANT", "TOO_EASY"])
    assert found.region.tolist() == names[codes[found.image, found.crop]].tolist()
    assert set(labelstore.crops(labels, mask="m", where="region = 'HARD'").region) == {"HARD"}


def test_arrow_batches_hold_the_same_rows(store):
    labels = store.label_set()
    read = crop_batches(labels, ALL, where="area < 0.5").read_pandas()
    expected = labelstore.crops(labels, ALL, where="area < 0.5")
    for name in ALL:
        assert read[name].tolist() == expected[name].tolist(), name


def test_images_without_ground_truth_have_no_probability_of_it(make_store):
    truth = np.array([-1, 0, 1, 2])
    store = make_store(soft_labels(images=4), ground_truth=truth)
    found = labelstore.crops(
        store.label_set(), ["image", "class", "ground_truth_probability", "agrees"]
    )
    assert found.ground_truth_probability.isna().equals(found.image == 0)
    assert found["class"].isna().equals(found.image == 0)
    assert not found.agrees[found.image == 0].any()


def test_one_hot_labels_have_no_entropy(make_store):
    found = labelstore.crops(make_store(soft_labels(), Hard()).label_set())
    assert (found.entropy == 0).all()
    assert (found.max_probability == 1).all()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"columns": ["nope"]}, "no column 'nope': choose from image"),
        ({"columns": []}, "name at least one"),
        ({"columns": "area"}, "give a list"),
        ({"columns": ["region"]}, "needs a mask"),
        ({"mask": "nope"}, "no mask named"),
        ({"images": ["../x"]}, "key"),
        ({"images": [99]}, "rows 0-23"),
        ({"sample": 0}, "number of crops from 1 on, or a share"),
        ({"sample": -1}, "sample"),
        ({"sample": 1.5}, "sample"),
        ({"sample": float("nan")}, "sample"),
    ],
)
def test_mistakes_are_named(store, arguments, problem):
    with pytest.raises((UsageError, labelstore.LabelStoreError), match=problem):
        labelstore.crops(store.label_set(), **arguments)


def test_five_classes_are_needed_for_the_first_five(make_store):
    labels = make_store(soft_labels(), MarginalSmoothing(k=3)).label_set()
    with pytest.raises(UsageError, match="it keeps 3 classes, five are needed"):
        labelstore.crops(labels, ["agrees_top5"])
