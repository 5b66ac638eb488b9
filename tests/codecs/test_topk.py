"""The top-K of dense probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labelstore.codecs import top_k
from labelstore.errors import UsageError


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 30)),
        elements=st.sampled_from([0, 0.125, 0.25, 0.5, 1, 1e-30]),
    ),
    st.data(),
)
def test_it_is_a_stable_descending_sort_whatever_the_ties(probs, data):
    k = data.draw(st.integers(1, probs.shape[-1]))
    kept = top_k(probs, k)
    order = np.argsort(-probs, axis=-1, kind="stable")
    np.testing.assert_array_equal(kept.class_ids, order[:, :k])
    np.testing.assert_array_equal(kept.probs, np.take_along_axis(probs, order[:, :k], -1))
    others = np.take_along_axis(probs, order[:, k:], -1)
    np.testing.assert_allclose(kept.tail, others.sum(-1), rtol=1e-6)
    assert kept.class_ids.dtype == np.uint16
    assert kept.tail.dtype == np.float32


def test_the_tail_of_a_sharp_teacher_is_not_lost():
    probs = np.full((1, 1001), 1e-12, np.float32)
    probs[0, 3] = 1
    np.testing.assert_allclose(top_k(probs, 1).tail, 1e-9, rtol=1e-5)


def test_the_given_array_is_left_alone():
    probs = np.array([[0.1, 0.9]], np.float32)
    top_k(probs, 1)
    assert probs.tolist() == np.array([[0.1, 0.9]], np.float32).tolist()


def test_missing_crops():
    probs = np.array([[0.1, 0.9], [np.nan, np.nan]], np.float32)
    kept = top_k(probs, 1)
    assert kept.class_ids.tolist() == [[1], [65_535]]
    assert np.isnan(kept.probs[1, 0])
    assert np.isnan(kept.tail[1])


def test_more_than_all_is_refused():
    with pytest.raises(UsageError, match="K=3 of C=2"):
        top_k(np.ones((1, 2), np.float32), 3)
