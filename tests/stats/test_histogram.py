"""FerKD Table 1 of a store: every crop in one bin, on the right side of its edges."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from labelstore.analysis.histogram import (
    PAPER_CUMULATIVE,
    PAPER_RATIOS,
    TABLE_1_EDGES,
    bins_of,
    histogram,
)
from labelstore.calibration.threshold_counts import count_thresholds
from labelstore.codecs import Full, MarginalSmoothing
from labelstore.errors import UsageError


def expected_counts(values, edges):
    """NumPy's bins over the thresholds as float32: closed below, open above, the last closed."""
    return np.histogram(values, np.array(edges, np.float32))[0].tolist()


def test_the_papers_figures_agree_with_themselves():
    assert len(PAPER_RATIOS) == len(PAPER_CUMULATIVE) == len(TABLE_1_EDGES) - 1
    np.testing.assert_allclose(np.cumsum(PAPER_RATIOS), PAPER_CUMULATIVE, atol=1.5e-4)


def test_every_crop_is_in_one_bin(make_store, like_the_paper):
    store = make_store(like_the_paper, images_per_shard=16, crops_per_shard=20, bad={9})
    found = histogram(store.label_set())
    counted = np.delete(like_the_paper, 9, 0)
    assert [row.count for row in found.bins] == expected_counts(counted, TABLE_1_EDGES)
    assert (found.num_crops, found.missing, found.is_complete) == (49 * 40, 40, True)
    assert sum(row.ratio for row in found.bins) == pytest.approx(1)
    assert found.bins[-1].cumulative == 1
    np.testing.assert_allclose(
        np.cumsum([row.ratio for row in found.bins]), [row.cumulative for row in found.bins]
    )
    assert [row.paper_ratio for row in found.bins] == list(PAPER_RATIOS)
    for row in found.bins:
        assert abs(row.ratio - row.paper_ratio) < 0.04
    assert json.loads(json.dumps(found.to_record()))["bins"][3]["count"] == found.bins[3].count


def test_the_fast_count_equals_the_counts_by_class(make_store, like_the_paper):
    labels = make_store(like_the_paper, images_per_shard=16, bad={9}).label_set()
    assert histogram(labels).bins == bins_of(count_thresholds(labels, TABLE_1_EDGES))


def test_an_edge_belongs_to_the_bin_above_and_one_to_the_last(make_store):
    values = np.array([[0.1, 0.2, 0.3, 0.85, 0.9, 0.95, 1.0, 0.9999]], np.float32)
    found = histogram(make_store(values, codec=Full(dtype="float32")).label_set())
    counts = {row.low: row.count for row in found.bins if row.count}
    assert counts == {0.1: 1, 0.2: 1, 0.3: 1, 0.85: 1, 0.9: 1, 0.95: 3}


def test_other_edges_and_the_ground_truths_probability(make_store, like_the_paper):
    truth = np.zeros(50, int)
    labels = make_store(like_the_paper, ground_truth=truth).label_set()
    found = histogram(labels, criterion="ground_truth_probability", edges=(0.0, 0.25, 1.0))
    assert [row.count for row in found.bins] == expected_counts(like_the_paper, (0.0, 0.25, 1.0))
    assert found.bins[0].paper_ratio is None


def test_blocks_may_be_spread_and_pieces_may_be_small(make_store, like_the_paper, monkeypatch):
    labels = make_store(like_the_paper, images_per_shard=8).label_set()
    whole = histogram(labels)
    monkeypatch.setattr("labelstore.blocks.crop_slab.SLAB_VALUES", 1)
    with ThreadPoolExecutor(2) as pool:
        assert histogram(labels, map_blocks=pool.map) == whole


@pytest.mark.slow
def test_eight_bits_keep_every_bin_within_half_a_point(make_store, like_the_paper):
    exact = histogram(make_store(like_the_paper).label_set())
    eight = histogram(
        make_store(like_the_paper, codec=MarginalSmoothing(k=5, dtype="uint8")).label_set()
    )
    for one, other in zip(exact.bins, eight.bins, strict=True):
        assert abs(one.ratio - other.ratio) <= 0.005


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "edges", [(0.0, 1.1), (0.1, 1.0), (0.0,), (0.0, 0.5, 0.5, 1.0), (0.0, 0.6, 0.5, 1.0)]
)
def test_edges_that_are_none_are_refused(make_store, edges):
    labels = make_store(np.full((2, 4), 0.5)).label_set()
    with pytest.raises(UsageError, match="from 0 to 1"):
        histogram(labels, edges=edges)


def test_no_ground_truth_no_histogram_of_it(make_store):
    labels = make_store(np.full((2, 4), 0.5), ground_truth=np.array([0, -1])).label_set()
    with pytest.raises(UsageError, match="without ground truth"):
        histogram(labels, criterion="ground_truth_probability")


def test_an_unfinished_label_set_says_so(make_store, like_the_paper):
    labels = make_store(like_the_paper, images_per_shard=16, blocks=[1]).label_set()
    found = histogram(labels)
    assert (found.num_crops, found.is_complete) == (16 * 40, False)
