"""Temperature after the fact, and the dense form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.codecs import MarginalSmoothing, SparseLabels, densify, temper, top_k


def softmax(logits):
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return probs / probs.sum(-1, keepdims=True)


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 50))
def test_tempering_probabilities_is_tempering_logits(seed, temperature):
    logits = np.random.default_rng(seed).normal(0, 4, (1, 5, 12))
    codec = MarginalSmoothing(k=12, dtype="float32")
    arrays = codec.encode(top_k(softmax(logits).astype(np.float32), 12), 12)
    found = codec.recover(arrays, 12, temperature)
    np.testing.assert_allclose(found, softmax(logits / temperature), atol=3e-6)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 50), st.integers(1, 5))
def test_sparse_tempering_equals_dense_tempering_of_the_recovered_label(seed, temperature, k):
    probs = np.random.default_rng(seed).dirichlet(np.full(8, 0.3), (1, 4)).astype(np.float32)
    codec = MarginalSmoothing(k=k, dtype="float32")
    arrays = codec.encode(top_k(probs, k), 8)
    dense = codec.recover(arrays, 8).astype(np.float64)
    dense = (dense / dense.max(-1, keepdims=True)) ** (1 / temperature)
    expected = dense / dense.sum(-1, keepdims=True)
    np.testing.assert_allclose(codec.recover(arrays, 8, temperature), expected, atol=1e-5)


def test_temperature_one_changes_nothing():
    labels = SparseLabels(
        class_ids=np.array([[1]], np.uint16),
        probs=np.array([[0.6]], "f4"),
        rest=np.array([0.1], "f4"),
    )
    assert temper(labels, 5, 1.0) is labels


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_densify(dtype):
    labels = SparseLabels(
        class_ids=np.array([[3, 0]], dtype),
        probs=np.array([[0.5, 0.2]], "f4"),
        rest=np.array([0.15], "f4"),
    )
    np.testing.assert_array_equal(densify(labels, 4), np.array([[0.2, 0.15, 0.15, 0.5]], "f4"))
