"""Stores whose labels follow FerKD Table 1."""

from __future__ import annotations

import numpy as np
import pytest

from labelstore.codecs import MarginalSmoothing
from labelstore.stats import PAPER_RATIOS, TABLE_1_EDGES
from labelstore.testing.filled_store import filled_store


@pytest.fixture
def make_store(tmp_path):
    """make_store(p_max (N, M), codec=..., **options of filled_store): a store, closed afterwards."""
    opened = []

    def make(p_max, *, codec=None, num_classes=12, **options):
        p_max = np.asarray(p_max, np.float32)
        dense = np.empty((*p_max.shape, num_classes), np.float32)
        dense[..., 0] = p_max
        dense[..., 1:] = ((1 - p_max) / (num_classes - 1))[..., None]
        codec = MarginalSmoothing(k=5, dtype="float32") if codec is None else codec
        store = filled_store(tmp_path / f"{len(opened)}.labels", dense, codec, **options)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def like_the_paper():
    """(50, 40) largest probabilities in the shares of FerKD Table 1, in no order."""
    rng = np.random.default_rng(5)
    ratios = np.array(PAPER_RATIOS)
    bins = rng.choice(len(ratios), p=ratios / ratios.sum(), size=(50, 40))
    edges = np.array(TABLE_1_EDGES)
    values = edges[bins] + rng.random(bins.shape) * np.diff(edges)[bins]
    return np.maximum(values, 0.0917).astype(np.float32)
