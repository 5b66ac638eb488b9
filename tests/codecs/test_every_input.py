"""What codecs promise holds for every label that they can be given: rounded to float16, near-uniform, sharp, of few or many classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore.calibration import Region, RegionThresholds
from labelstore.codecs import Full, MarginalRenorm, MarginalSmoothing, Smoothing, TopK, top_k
from labelstore.codecs.probabilities import TWENTIETHS, possible

DTYPES = ["float32", "float16", "uint8"]
ERROR = {"float32": 1e-6, "float16": 2**-11, "uint8": 0.0052}
"""Of the largest probability."""
SWAPPED = 0.007
"""How far 8 bits may raise a later class above an earlier one that is as likely."""


def softmax(logits):
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return probs / probs.sum(-1, keepdims=True)


def dense_of(kind, rng, num_classes):
    """(1, 6, C) float32; what the kind says."""
    noise = rng.normal(0, 1, (1, 6, num_classes))
    if kind == "near-uniform":
        return softmax(0.01 * noise).astype(np.float32)
    if kind == "sharp":
        logits = 2 * noise
        logits[..., 0] = logits.max(-1) + 7 + np.log(num_classes) + rng.exponential(4, (1, 6))
        return softmax(logits).astype(np.float32)
    probs = softmax(rng.choice([2.0, 4.0, 8.0]) * noise)
    if kind == "at a threshold":
        first = rng.choice(TWENTIETHS[1:], (1, 6))
        top = probs.argmax(-1)[..., None]
        np.put_along_axis(probs, top, 0, -1)
        probs *= ((1 - first) / probs.sum(-1).clip(1e-30))[..., None]
        probs = np.minimum(probs, first[..., None].astype(np.float64))
        np.put_along_axis(probs, top, first[..., None], -1)
        return probs.astype(np.float32)
    return probs.astype(np.float16 if kind == "float16" else np.float32).astype(np.float32)


KINDS = ["near-uniform", "sharp", "float16", "float32", "at a threshold", "file"]


@st.composite
def kept_labels(draw):
    """A TopK (1, 6, K) and its number of classes."""
    num_classes = draw(st.sampled_from([2, 3, 10, 100, 1000, 21_841, 25_000]) | st.integers(2, 300))
    k = draw(st.integers(1, min(num_classes, 12)) | st.sampled_from([100, 1000, num_classes]))
    k = min(k, num_classes, 1000)
    kind = draw(st.sampled_from(KINDS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind != "file":
        return top_k(dense_of(kind, rng, num_classes), k), num_classes
    # float16 in a file of another project: the tail is what the kept probabilities leave of one
    kept = top_k(dense_of(rng.choice(["sharp", "float32"]), rng, num_classes), k)
    probs = kept.probs.astype(np.float16).astype(np.float32)
    tail = np.maximum(1 - probs.sum(-1, dtype=np.float64), 0).astype(np.float32)
    if k == num_classes:
        tail *= 0
    return TopK(class_ids=kept.class_ids, probs=probs, tail=tail), num_classes


@pytest.mark.sample(1)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=150, deadline=None)
@given(labels=kept_labels())
def test_every_promise_holds_for_every_label(dtype, labels):
    kept, num_classes = labels
    k = kept.probs.shape[-1]
    codec = MarginalSmoothing(k=k, dtype=dtype)
    arrays = codec.encode(kept, num_classes)
    found = codec.decode(arrays, num_classes)
    assert (found.probs >= 0).all()
    assert (found.rest >= 0).all()
    total = found.probs.sum(-1, dtype=np.float64) + found.rest.astype(np.float64) * (
        num_classes - k
    )
    np.testing.assert_allclose(total, 1, atol=2e-6)
    assert (found.probs <= found.probs[..., :1]).all(), "the first class leads"
    if k < num_classes:
        # 8 bits split what is left K times in float32, each time rounded
        bits = 1 - 2**-23 * k if dtype == "uint8" else 1
        assert (found.probs >= bits * found.rest[..., None]).all(), (
            "no kept class is below the rest"
        )
    swapped = (found.probs[..., 1:] - found.probs[..., :-1]).max(initial=0)
    assert swapped <= (SWAPPED if dtype == "uint8" else 0), "the teacher's order"
    nearest, _ = possible(kept.probs, kept.tail, num_classes)
    assert np.abs(found.probs[..., 0] - nearest[..., 0]).max() <= ERROR[dtype]
    np.testing.assert_array_equal(
        np.searchsorted(TWENTIETHS, found.probs[..., 0], side="right"),
        np.searchsorted(TWENTIETHS, nearest[..., 0], side="right"),
    )
    np.testing.assert_allclose(
        codec.max_probability(arrays, num_classes), found.probs[..., 0], rtol=1e-5
    )


@settings(max_examples=100, deadline=None)
@given(labels=kept_labels())
def test_a_label_that_a_softmax_has_is_left_alone_and_any_becomes_one(labels):
    kept, num_classes = labels
    others = num_classes - kept.probs.shape[-1]
    probs, tail = possible(kept.probs, kept.tail, num_classes)
    np.testing.assert_allclose(probs.sum(-1, dtype=np.float64) + tail, 1, atol=1e-6)
    assert (np.diff(probs, axis=-1) <= 0).all()
    assert (tail <= others * probs[..., -1].astype(np.float64) * (1 + 3e-7)).all()
    # the likelier classes keep what they had of the whole
    share = kept.probs / (kept.probs.sum(-1, dtype=np.float64) + kept.tail)[..., None]
    raised = probs > share + 2e-7
    np.testing.assert_allclose(probs[~raised], share[~raised], atol=1.1e-6)
    again, same = possible(probs, tail, num_classes)
    np.testing.assert_allclose(again, probs, rtol=3e-7)
    np.testing.assert_allclose(same, tail, rtol=3e-7, atol=1e-30)


@pytest.mark.parametrize("num_classes", [10, 1000, 21_841])
def test_a_float16_file_with_classes_at_zero_keeps_its_largest_probability(num_classes):
    """0.99902 came back as 0.9936, and as 0.974 at 21,841 classes: the tail is more than classes at zero allow."""
    probs = np.array([[[0.99902344, 0, 0, 0, 0]]], np.float32)
    kept = TopK(
        class_ids=np.arange(5, dtype=np.uint16)[None, None], probs=probs, tail=1 - probs.sum(-1)
    )
    for dtype in ("float16", "float32"):
        codec = MarginalSmoothing(dtype=dtype)
        found = codec.decode(codec.encode(kept, num_classes), num_classes)
        assert abs(found.probs[0, 0, 0] - probs[0, 0, 0]) <= 2**-11


@pytest.mark.parametrize("threshold", TWENTIETHS[2:].tolist())
def test_a_probability_at_a_threshold_is_in_the_region_that_the_rule_names(threshold):
    """float32 keeps it to the last bit: low and middle take it, top keeps it. Elsewhere it counts as just above."""
    others = np.float32(1 - threshold) * np.random.default_rng(3).dirichlet(np.full(99, 3.0))
    assert others.max() < threshold
    dense = np.concatenate([[threshold], others]).astype(np.float32)[None, None]
    for codec in [
        *(MarginalSmoothing(k=5, dtype=dtype) for dtype in DTYPES),
        *(Smoothing(dtype=dtype) for dtype in DTYPES),
        Full(dtype="float32"),
        Full(dtype="float16"),
    ]:
        kept = codec.kept(100)
        arrays = codec.encode(dense if kept is None else top_k(dense, kept), 100)
        found = codec.max_probability(arrays, 100)
        assert found >= np.float32(threshold)
        low = RegionThresholds(low=threshold, middle=threshold + 0.02, top=1.0)
        assert low.regions(found) == Region.HARD
        middle = RegionThresholds(low=0.05, middle=threshold, top=1.0)
        assert middle.regions(found) == Region.IMPORTANT
        if codec.dtype == "float32":
            assert found == np.float32(threshold)
            assert RegionThresholds(low=0.05, middle=0.05, top=threshold).regions(found) == 2


@settings(max_examples=60, deadline=None)
@given(labels=kept_labels())
def test_renormalised_labels_keep_their_order_and_sum(labels):
    kept, num_classes = labels
    for dtype in ("float32", "float16"):
        codec = MarginalRenorm(k=kept.probs.shape[-1], dtype=dtype)
        found = codec.decode(codec.encode(kept, num_classes), num_classes)
        np.testing.assert_allclose(found.probs.sum(-1, dtype=np.float64), 1, atol=2e-6)
        assert (np.diff(found.probs, axis=-1) <= 0).all()
        wanted = kept.probs[..., 0] / kept.probs.sum(-1, dtype=np.float64)
        assert np.abs(found.probs[..., 0] - wanted).max() <= ERROR[dtype]
