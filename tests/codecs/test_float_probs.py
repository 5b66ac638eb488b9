"""float16 and float32 probabilities: error bounds, and a tail that float16 itself would lose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.codecs import MarginalSmoothing, top_k
from labelstore.codecs.probabilities import float32_of, row_sum, scale_rows


def sharp_labels(margin, seed=0, num_classes=100, rows=200):
    """(1, rows, C) in float64; the larger the margin, the less beyond the first class."""
    logits = np.random.default_rng(seed).normal(0, 2, (1, rows, num_classes))
    logits[..., 0] += margin
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return -np.sort(-probs / probs.sum(-1, keepdims=True), -1)


def recovered(dtype, probs, k=5):
    codec = MarginalSmoothing(k=k, dtype=dtype)
    arrays = codec.encode(top_k(probs.astype(np.float32), k), probs.shape[-1])
    return codec.decode(arrays, probs.shape[-1])


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 5, 10, 20, 40]), st.integers(1, 99))
def test_the_error_of_float16_is_at_most_its_half_step(seed, margin, k):
    probs = sharp_labels(margin, seed, rows=20)
    assert np.abs(recovered("float16", probs, k).probs - probs[..., :k]).max() <= 2**-11


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("margin", [0, 6, 12, 18, 24, 30])
def test_the_tail_is_right_to_7_5_percent_however_small(margin, dtype):
    probs = sharp_labels(margin)
    tail = recovered(dtype, probs).rest * 95
    bound = 0.075 if dtype == "float16" else 1e-5
    np.testing.assert_allclose(tail, probs[..., 5:].sum(-1), rtol=bound)


def test_one_minus_the_sum_alone_would_have_lost_it():
    """The reason for the field: without it the tail of a sharp teacher is noise."""
    probs = sharp_labels(24)
    by_sum = 1 - probs[..., :5].astype(np.float16).astype(np.float32).sum(-1)
    tail = probs[..., 5:].sum(-1)
    assert np.mean(np.abs(by_sum - tail) > 0.99 * tail) > 0.9


def test_kept_probabilities_below_float16_stay_above_the_rest():
    probs = sharp_labels(30)
    labels = recovered("float16", probs)
    assert (probs[..., 4] < 2**-25).any()
    assert (labels.probs >= labels.rest[..., None]).all()
    assert (labels.probs > 0).all()


def test_a_label_without_tail_has_none():
    probs = np.zeros((1, 1, 10))
    probs[..., :2] = 0.5
    assert recovered("float16", probs).rest.tolist() == [[0.0]]


def test_the_fast_conversion_equals_numpys():
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16)  # all finite values >= 0
    np.testing.assert_array_equal(float32_of(every), every.astype(np.float32))
    assert float32_of(np.array([np.nan], np.float16))[0] > 2


@pytest.mark.parametrize("k", [1, 5, 16, 17, 1000])
def test_sums_and_scalings_equal_numpys(k):
    probs = np.random.default_rng(k).random((3, 4, k), dtype=np.float32)
    np.testing.assert_allclose(row_sum(probs), probs.sum(-1), rtol=1e-5)
    expected = probs * row_sum(probs)[..., None]
    scale_rows(probs, row_sum(probs))
    np.testing.assert_array_equal(probs, expected)
