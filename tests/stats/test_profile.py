"""The profile of a label set: means, spreads and shares as pandas finds them in the table of crops."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import labelstore
from labelstore.analysis.comparison import compare, compare_all
from labelstore.analysis.profile import profile
from labelstore.blocks.block_map import share_of_blocks
from labelstore.codecs import MarginalSmoothing
from labelstore.errors import UsageError


@pytest.fixture
def store(make_store):
    rng = np.random.default_rng(4)
    return make_store(
        rng.uniform(0.1, 1, (30, 12)), images_per_shard=8, crops_per_shard=6, bad={11}
    )


@pytest.mark.slow
def test_measures_are_those_of_the_table(store, monkeypatch):
    labels = store.label_set()
    found = profile(labels)
    names = [measure.name for measure in found.measures]
    table = labelstore.crops(labels, [*names, "class", "agrees", "agrees_top5", "flip"])
    assert (found.images, found.crops, found.blocks) == (29, 29 * 12, 4)
    for measure in found.measures:
        values = table[measure.name].to_numpy(np.float64)
        assert measure.crops == len(values)
        assert measure.mean == pytest.approx(values.mean())
        assert measure.std == pytest.approx(values.std(), abs=1e-6)
        assert (measure.least, measure.most) == (values.min(), values.max())
        assert sum(measure.counts) == len(values)
    assert found.top1 == table.agrees.mean()
    assert found.top5 == table.agrees_top5.mean()
    assert found.flip_rate == table.flip.mean()
    assert found.sizes == {"height": (375, 375, 375), "width": (500, 500, 500)}
    by_class = table.groupby("class", observed=True)
    for row in found.classes:
        own = by_class.get_group(row.name)
        assert row.crops == len(own)
        assert row.max_probability == pytest.approx(own.max_probability.mean())
        assert row.ground_truth_probability == pytest.approx(own.ground_truth_probability.mean())
        assert row.entropy == pytest.approx(own.entropy.mean(), rel=1e-5)
        assert (row.top1, row.top5) == (own.agrees.mean(), own.agrees_top5.mean())
    assert sum(row.crops for row in found.classes) == found.crops
    assert json.dumps(found.to_record())
    assert "classes" not in found.to_record(per_class=False)
    monkeypatch.setattr("labelstore.blocks.crop_slab.SLAB_VALUES", 1)
    parts = profile(labels, map_blocks=map)
    assert parts.crops == found.crops
    for one, other in zip(parts.measures, found.measures, strict=True):
        assert one.counts == other.counts
        assert one.mean == pytest.approx(other.mean)


@given(
    st.lists(st.integers(0, 10**6), unique=True, max_size=400), st.floats(0, 1, exclude_min=True)
)
def test_a_share_of_the_blocks_is_that_share(blocks, share):
    blocks = sorted(blocks)
    chosen = share_of_blocks(blocks, share)
    assert len(chosen) == (max(1, round(share * len(blocks))) if blocks else 0)
    places = [blocks.index(block) for block in chosen]
    steps = set(np.diff(places))
    assert not steps or max(steps) - min(steps) <= 1  # spread evenly
    assert share_of_blocks(blocks, 1.0) == tuple(blocks)


def test_all_that_read_a_share_read_that_share(store):
    labelstore.derive(store.label_set(), labelstore.Hard(), name="hard")
    name = next(name for name in store.label_sets if name != "hard")
    label_sets = [store.label_set(name), store.label_set("hard")]
    for share, blocks in ((0.7, 3), (0.4, 2), (0.1, 1)):
        images = profile(label_sets[0], share=share).images
        assert profile(label_sets[0], share=share).blocks == blocks
        assert compare(label_sets, ground_truth=True, share=share).crops.sum() == images * 12
        pairs = compare_all(store, share=share).pairs
        assert [pair.num_crops for pair in pairs] == [images * 12]


def test_a_share_walks_so_many_blocks(store):
    found = profile(store.label_set(), share=0.5)
    assert (found.blocks, found.blocks_committed) == (2, 4)
    assert found.images == 8 + 8
    for share in (0, 1.5, -1, float("nan")):
        with pytest.raises(UsageError, match="share of the image blocks"):
            profile(store.label_set(), share=share)


@pytest.mark.slow
def test_what_is_not_known_is_none(make_store):
    p_max = np.full((4, 6), 0.5)
    few = make_store(p_max, codec=MarginalSmoothing(k=2)).label_set()
    assert profile(few).top5 is None
    assert {row.top5 for row in profile(few).classes} == {None}
    strangers = make_store(p_max, ground_truth=np.full(4, -1)).label_set()
    found = profile(strangers)
    assert (found.top1, found.top5) == (None, None)
    assert found.measure("ground_truth_probability").mean is None
    assert [(row.name, row.crops, row.top1) for row in found.classes] == [("", 24, None)]
    empty = profile(make_store(p_max, blocks=[]).label_set())
    assert (empty.crops, empty.classes) == (0, ())
    assert empty.measure("area").mean is None
