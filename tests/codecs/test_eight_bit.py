"""The laws of 8-bit probabilities, on teachers from confused to nearly one-hot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labelstore.codecs import MarginalSmoothing, SparseLabels, TopK, densify, temper, top_k
from labelstore.codecs.eight_bit import EightBitProbs

TABLE_1 = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0001])
"""FerKD Table 1's bins of the largest probability."""
TABLE_1_PERCENT = np.array(
    [0.43, 0.89, 1.29, 2.03, 3.66, 4.35, 5.04, 7.76, 8.14, 28.73, 37.34, 0.33]
)
CROPS = 3000


def of_table_1(num_classes=400):
    """Labels whose largest probability follows FerKD Table 1, with a long tail."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(12, CROPS, p=TABLE_1_PERCENT / TABLE_1_PERCENT.sum())
    first = rng.uniform(TABLE_1[drawn], TABLE_1[drawn + 1]).clip(0.02, 0.9999)[:, None]
    others = np.exp(rng.normal(0, 3, (CROPS, num_classes - 1)))
    others *= (1 - first) / others.sum(-1, keepdims=True)
    return np.concatenate([first, others], -1)


def of_logits(scale, margin, num_classes=400):
    """Softmax of normal logits, the first class ahead of the others by about `margin`."""
    rng = np.random.default_rng(int(margin))
    logits = rng.normal(0, scale, (CROPS, num_classes))
    logits[:, 0] += margin + rng.normal(0, 2, CROPS)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return probs / probs.sum(-1, keepdims=True)


TEACHERS = {
    "table 1": of_table_1(),
    "soft": of_logits(1.5, 8),
    "confused": of_logits(3, 5),
    "uniform": of_logits(0.3, 0),
    "ten classes": of_logits(3, 5, num_classes=10),
    "sharp": of_logits(2, 17),  # p_1 = 0.9998 in the median
    "sharper": of_logits(3, 26),
    "sharpest": of_logits(3, 36),
}


@pytest.fixture(scope="module", params=TEACHERS)
def teacher(request):
    """(1, n, C) float64, sorted descending."""
    return -np.sort(-TEACHERS[request.param], -1)[None]


@pytest.fixture(scope="module")
def exact(teacher):
    """The teacher's top-5 and tail in float32."""
    return top_k(teacher.astype(np.float32), 5)


def recovered(exact, num_classes, temperature=1.0):
    codec = MarginalSmoothing(k=exact.probs.shape[-1], dtype="uint8")
    return codec.decode(codec.encode(exact, num_classes), num_classes, temperature)


def splits(probs, tail):
    """Kept probabilities and tail side by side, in float64, each row summing to one."""
    both = np.concatenate([probs, tail[..., None]], -1).astype(np.float64)
    return both / both.sum(-1, keepdims=True)


def divergence(p, q):
    """KL divergence in nats over the last axis."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0).sum(-1)


def divergences(exact, num_classes):
    labels = recovered(exact, num_classes)
    others = num_classes - exact.probs.shape[-1]
    return divergence(splits(exact.probs, exact.tail), splits(labels.probs, labels.rest * others))


def test_divergence_from_float32(teacher, exact):
    found = divergences(exact, teacher.shape[-1])
    assert found.mean() <= 1e-4
    assert found.max() <= 3e-4  # the law asks for 1e-3


@pytest.mark.parametrize("k", [1, 2, 3, 10, 20, 50])
@pytest.mark.parametrize("name", ["table 1", "confused", "uniform", "sharp"])
def test_divergence_for_other_k(name, k):
    probs = TEACHERS[name][None, :500].astype(np.float32)
    found = divergences(top_k(probs, k), probs.shape[-1])
    assert found.mean() <= (1e-4 if k <= 20 else 2e-4)
    assert found.max() <= 5e-4


def test_error_of_the_largest_probability(teacher, exact):
    found = recovered(exact, teacher.shape[-1]).probs
    assert np.abs(found[..., 0] - teacher[..., 0]).max() <= 0.0052  # the law asks for 0.01
    np.testing.assert_array_equal(found.max(-1), found[..., 0])


def test_every_multiple_of_a_twentieth_is_a_boundary(teacher, exact):
    """So no crop changes its bin of FerKD Table 1, nor its region at any of the usual thresholds."""
    thresholds = np.arange(1, 20, dtype=np.float32) / np.float32(20)
    found = recovered(exact, teacher.shape[-1]).probs[..., 0]
    np.testing.assert_array_equal(
        np.searchsorted(thresholds, found, side="right"),
        np.searchsorted(thresholds, exact.probs[..., 0], side="right"),
    )


@given(st.integers(1, 19), st.sampled_from([-1, 0, 1]), st.integers(2, 3000))
def test_boundaries_hold_to_the_last_bit(twentieth, bits, num_classes):
    threshold = np.float32(twentieth) / np.float32(20)
    first = np.nextafter(threshold, np.float32(threshold + bits), dtype=np.float32)
    exact = TopK(
        class_ids=np.zeros((1, 1, 1), np.uint16),
        probs=first.reshape(1, 1, 1),
        tail=(1 - first).reshape(1, 1),
    )
    if first * num_classes < 1:
        return  # no label's largest probability
    assert (recovered(exact, num_classes).probs[0, 0, 0] >= threshold) == (first >= threshold)


@pytest.mark.sample(6)
@pytest.mark.parametrize("temperature", [2, 4, 20])
def test_tempered_labels_are_as_near_the_truth_as_with_the_exact_tail(teacher, exact, temperature):
    num_classes = teacher.shape[-1]
    truth = teacher ** (1 / temperature)
    truth /= truth.sum(-1, keepdims=True)
    rest = exact.tail / np.float32(num_classes - 5)
    unrounded = SparseLabels(class_ids=exact.class_ids, probs=exact.probs, rest=rest)
    best = densify(temper(unrounded, num_classes, temperature), num_classes)
    found = densify(recovered(exact, num_classes, temperature), num_classes)
    nearest = divergence(truth, best.astype(np.float64)).mean()
    assert divergence(truth, found.astype(np.float64)).mean() <= 1.05 * nearest


def test_the_tail_keeps_its_size_however_small(teacher, exact):
    tail = teacher[..., 5:].sum(-1)
    found = recovered(exact, teacher.shape[-1]).rest * (teacher.shape[-1] - 5)
    off = np.abs(np.log(found / tail))[tail > 1e-12]
    assert off.mean() < 0.15
    assert off.max() < 0.9


@given(
    arrays(
        np.uint8,
        st.tuples(st.just(2), st.just(3), st.integers(1, 12)),
        elements=st.integers(0, 254),
    ),
    st.integers(0, 1000),
)
def test_any_codes_at_all_are_a_distribution(codes, others):
    k = codes.shape[-1]
    probs, tail = EightBitProbs().decode({"probability_code": codes}, k + others)
    assert (probs >= 0).all()
    assert (tail >= 0).all()
    assert (probs <= probs[..., :1]).all()
    np.testing.assert_allclose(probs.sum(-1, dtype=np.float64) + tail, 1, atol=1e-6)


def test_a_label_of_one_class_has_exactly_one_class():
    exact = top_k(np.eye(10, dtype=np.float32)[None], 5)
    labels = recovered(exact, 10, temperature=20)
    np.testing.assert_array_equal(labels.probs[..., 0], 1)
    np.testing.assert_array_equal(labels.rest, 0)
    assert labels.class_ids[0, :, 0].tolist() == list(range(10))


@pytest.mark.parametrize("equal", [2, 3, 4, 5, 7])
def test_a_label_of_a_few_equal_classes(equal):
    probs = np.zeros((1, 1, 9), np.float32)
    probs[..., :equal] = 1 / equal
    for k in range(1, 10):
        dense = densify(recovered(top_k(probs, k), 9), 9)
        np.testing.assert_allclose(dense.sum(), 1, atol=1e-6)
        assert dense[0, 0].argmax() == 0


def test_codes_do_not_depend_on_how_crops_are_grouped():
    probs = TEACHERS["confused"].astype(np.float32)
    together = MarginalSmoothing(dtype="uint8").encode(top_k(probs[None], 5), 400)
    one = MarginalSmoothing(dtype="uint8").encode(top_k(probs[None, 7:8], 5), 400)
    np.testing.assert_array_equal(together["probability_code"][0, 7:8], one["probability_code"][0])


@given(st.lists(st.sampled_from([1e-45, 3e-40, 1e-30, 1e-12, 0.0]), min_size=3, max_size=3))
def test_the_smallest_numbers_there_are(others):
    probs = np.array([[[1, *others, 0]]], np.float32)
    for k in range(1, 5):
        dense = densify(recovered(top_k(probs, k), 5), 5)
        np.testing.assert_allclose(dense, probs, atol=1e-6)
