"""Stores whose labels follow FerKD Table 1."""

from __future__ import annotations

import numpy as np
import pytest

from labelstore.analysis.histogram import PAPER_RATIOS, TABLE_1_EDGES
from labelstore.codecs import MarginalSmoothing
from tests.calibration.conftest import with_max_probability


@pytest.fixture
def make_store(new_store):
    """make_store(p_max (N, M), codec=..., **options of filled_store): a store, closed afterwards."""

    def make(p_max, *, codec=None, num_classes=12, **options):
        codec = MarginalSmoothing(k=5, dtype="float32") if codec is None else codec
        return new_store(with_max_probability(p_max, num_classes), codec, **options)

    return make


@pytest.fixture
def like_the_paper():
    """(50, 40) largest probabilities in the shares of FerKD Table 1, in no order."""
    rng = np.random.default_rng(5)
    ratios = np.array(PAPER_RATIOS)
    bins = rng.choice(len(ratios), p=ratios / ratios.sum(), size=(50, 40))
    edges = np.array(TABLE_1_EDGES)
    values = edges[bins] + rng.random(bins.shape) * np.diff(edges)[bins]
    return np.maximum(values, 0.0917).astype(np.float32)
