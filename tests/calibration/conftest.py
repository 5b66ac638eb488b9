"""Soft labels with chosen largest probabilities, and stores made of them."""

from __future__ import annotations

import numpy as np
import pytest

from labelstore.codecs import Full, MarginalSmoothing


def with_max_probability(p_max, num_classes=6):
    """Dense labels (n, m, C) whose first class has the given probability, and none has more."""
    p_max = np.asarray(p_max, np.float32)
    assert p_max.min() * num_classes >= 1
    dense = np.empty((*p_max.shape, num_classes), np.float32)
    dense[..., 0] = p_max
    dense[..., 1:] = ((1 - p_max) / (num_classes - 1))[..., None]
    return dense


@pytest.fixture
def make_store(new_store):
    """make_store(p_max (N, M), codec=..., **options of filled_store): a store, closed afterwards."""

    def make(p_max, *, codec=None, num_classes=6, **options):
        codec = MarginalSmoothing(k=2, dtype="float32") if codec is None else codec
        return new_store(with_max_probability(p_max, num_classes), codec, **options)

    return make


@pytest.fixture
def p_max():
    """(20, 10) largest probabilities over all regions; image 7 is only easy, image 11 only hard to the limit."""
    rng = np.random.default_rng(1)
    values = rng.uniform(0.17, 1, (20, 10)).astype(np.float32)
    values[7] = 0.99
    values[11] = 0.18
    return values


@pytest.fixture
def full():
    return Full(dtype="float32")
