"""FKD Eq. 3-7, and what every codec owes: non-negative, sums to one, round trip, for any C and K."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore.codecs import (
    Full,
    Hard,
    MarginalRenorm,
    MarginalSmoothing,
    Smoothing,
    top_k,
)
from labelstore.errors import UsageError

DTYPES = ["float32", "float16", "uint8"]


@st.composite
def dense_labels(draw, max_classes=40):
    """(2, 3, C) float32, from nearly uniform to one-hot, exact zeros and ties included."""
    num_classes = draw(st.integers(2, max_classes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sharpness = draw(st.sampled_from([0.1, 1.0, 4.0, 12.0, 60.0]))
    logits = rng.normal(0, sharpness, (2, 3, num_classes))
    if draw(st.booleans()):
        logits = np.rint(logits / sharpness) * sharpness  # ties
    return softmax(logits)


def softmax(logits):
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return (probs / probs.sum(-1, keepdims=True)).astype(np.float32)


def kept_codecs(k, dtype):
    codecs = [MarginalSmoothing(k=k, dtype=dtype), MarginalRenorm(k=k, dtype=dtype)]
    codecs += [Smoothing(dtype=dtype), MarginalSmoothing(k=k, tail_classes=4, dtype=dtype)]
    return codecs + [type(c).from_record(c.to_record() | {"class_ids": "table"}) for c in codecs]


def assert_distribution(recovered):
    assert recovered.dtype == np.float32
    assert (recovered >= 0).all()
    np.testing.assert_allclose(recovered.sum(-1, dtype=np.float64), 1, atol=2e-6)


def largest(probs, k):
    """The K largest of one label, the lower class id first among equals."""
    return sorted(range(len(probs)), key=lambda c: (-probs[c], c))[:k]


def round_trip(codec, probs, temperature=1.0):
    num_classes = probs.shape[-1]
    kept = codec.kept(num_classes)
    labels = probs if kept is None else top_k(probs, kept)
    return codec.recover(codec.encode(labels, num_classes), num_classes, temperature)


@given(dense_labels())
def test_hard_is_equation_3(probs):
    expected = np.eye(probs.shape[-1], dtype=np.float32)[probs.argmax(-1)]
    np.testing.assert_array_equal(round_trip(Hard(), probs), expected)


@given(dense_labels())
def test_smoothing_is_equation_4(probs):
    recovered = round_trip(Smoothing(dtype="float32"), probs)
    for got, label in zip(recovered.reshape(6, -1), probs.reshape(6, -1), strict=True):
        top, num_classes = int(label.argmax()), len(label)
        expected = np.full(num_classes, (1 - np.float64(label[top])) / (num_classes - 1))
        expected[top] = label[top]
        np.testing.assert_allclose(got, expected, atol=5e-7)


@given(dense_labels(), st.data())
def test_ms_is_equation_5(probs, data):
    k = data.draw(st.integers(1, probs.shape[-1]))
    recovered = round_trip(MarginalSmoothing(k=k, dtype="float32"), probs)
    for got, label in zip(recovered.reshape(6, -1), probs.reshape(6, -1), strict=True):
        top, num_classes = largest(label, k), len(label)
        expected = np.full(num_classes, 0.0)
        if k < num_classes:
            expected[:] = (1 - label[top].sum(dtype=np.float64)) / (num_classes - k)
        expected[top] = label[top]
        np.testing.assert_allclose(got, expected, atol=5e-7)


@given(dense_labels(), st.data())
def test_mr_is_equations_6_and_7(probs, data):
    k = data.draw(st.integers(1, probs.shape[-1]))
    recovered = round_trip(MarginalRenorm(k=k, dtype="float32"), probs)
    for got, label in zip(recovered.reshape(6, -1), probs.reshape(6, -1), strict=True):
        top = largest(label, k)
        expected = np.zeros(len(label))
        expected[top] = label[top] / label[top].sum(dtype=np.float64)
        np.testing.assert_allclose(got, expected, atol=5e-7)


@given(probs=dense_labels(), temperature=st.sampled_from([1.0, 3.0]))
def test_full_keeps_every_probability(probs, temperature):
    assert_distribution(round_trip(Full(dtype="float16"), probs, temperature))
    np.testing.assert_allclose(round_trip(Full(dtype="float16"), probs), probs, atol=2**-10)
    recovered = round_trip(Full(dtype="float32"), probs, temperature)
    assert_distribution(recovered)
    tempered = probs ** np.float32(1 / temperature)
    expected = tempered / tempered.sum(-1, keepdims=True)
    np.testing.assert_allclose(recovered, expected, atol=2e-6)


@pytest.mark.sample(1)
@pytest.mark.parametrize("dtype", DTYPES)
@given(probs=dense_labels(), data=st.data())
def test_every_recovered_label_is_a_distribution(dtype, probs, data):
    num_classes = probs.shape[-1]
    k = data.draw(st.integers(1, num_classes))
    temperature = data.draw(st.sampled_from([1.0, 0.3, 2.0, 20.0]))
    for codec in kept_codecs(k, dtype):
        used = 1.0 if codec.name == "mr" else temperature
        recovered = round_trip(codec, probs, used)
        assert_distribution(recovered)
        np.testing.assert_allclose(
            round_trip(codec, probs).max(-1), exact(codec, probs), atol=0.0101
        )


def exact(codec, probs):
    """The largest probability that the codec would give without rounding."""
    kept = top_k(probs, codec.kept(probs.shape[-1])).probs
    return kept[..., 0] / kept.sum(-1) if codec.name == "mr" else kept[..., 0]


@pytest.mark.sample(1)
@pytest.mark.parametrize("dtype", DTYPES)
@given(probs=dense_labels(), data=st.data())
def test_storing_again_what_was_recovered_changes_little(dtype, probs, data):
    """Deriving a label set from another in the same dtype costs no more than the first rounding did."""
    num_classes = probs.shape[-1]
    codec = MarginalSmoothing(k=data.draw(st.integers(1, num_classes)), dtype=dtype)
    once = round_trip(codec, probs)
    twice = round_trip(codec, once)
    bound = {"float32": 3e-7, "float16": 2**-11, "uint8": 0.0101}[dtype]
    np.testing.assert_allclose(twice, once, atol=bound, rtol=5e-7)


@pytest.mark.sample(1)
@pytest.mark.parametrize("dtype", DTYPES)
@given(probs=dense_labels(), data=st.data())
def test_the_first_class_leads_and_none_is_below_the_rest(dtype, probs, data):
    num_classes = probs.shape[-1]
    codec = MarginalSmoothing(k=data.draw(st.integers(1, num_classes)), dtype=dtype)
    labels = codec.decode(codec.encode(top_k(probs, codec.k), num_classes), num_classes)
    assert (labels.probs <= labels.probs[..., :1]).all()
    assert (labels.probs >= labels.rest[..., None] * (1 - 1e-5)).all()
    np.testing.assert_array_equal(labels.class_ids[..., 0], probs.argmax(-1))


@pytest.mark.sample(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_classes", "k"),
    [(25_000, 5), (25_000, 1), (2_000, 2_000), (25_000, 400), (70_000, 3), (1, 1)],
)
def test_many_classes(num_classes, k, dtype):
    rng = np.random.default_rng(num_classes + k)
    probs = softmax(rng.normal(0, 3, (2, 2, num_classes)))
    probs[0, 1] = np.float32(1 / num_classes)
    for codec in kept_codecs(k, dtype):
        recovered = round_trip(codec, probs)
        assert_distribution(recovered)
        np.testing.assert_allclose(recovered.max(-1), exact(codec, probs), atol=0.0101)


@settings(max_examples=10)
@given(st.integers(1, 25_000), st.data())
def test_any_number_of_classes(num_classes, data):
    k = data.draw(st.integers(1, min(num_classes, 30)) | st.just(min(num_classes, 500)))
    probs = softmax(np.random.default_rng(k).normal(0, 4, (1, 2, num_classes)))
    codec = MarginalSmoothing(
        k=k,
        dtype=data.draw(st.sampled_from(DTYPES)),
        class_ids=data.draw(st.sampled_from(["plain", "table"])),
    )
    assert_distribution(round_trip(codec, probs))


@pytest.mark.sample(1)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_class_of_25_000_kept(dtype):
    probs = softmax(np.random.default_rng(1).normal(0, 1, (1, 1, 25_000)))
    recovered = round_trip(MarginalSmoothing(k=25_000, dtype=dtype), probs)
    assert_distribution(recovered)
    assert (probs * np.log(probs / recovered)).sum() < 2e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_missing_crops_come_back_as_nan(dtype):
    probs = softmax(np.random.default_rng(2).normal(0, 3, (3, 4, 9)))
    probs[1, 2] = np.nan
    missing = np.isnan(probs)
    for codec in [*kept_codecs(3, dtype), Hard(), Hard(class_ids="table")]:
        arrays = codec.encode(top_k(probs, codec.kept(9)), 9)
        np.testing.assert_array_equal(np.isnan(codec.recover(arrays, 9)), missing)
        labels = codec.decode(arrays, 9)
        np.testing.assert_array_equal(labels.class_ids[1, 2], 65_535)
        assert np.isnan(labels.rest[1, 2])
    if dtype != "uint8":
        np.testing.assert_array_equal(np.isnan(round_trip(Full(dtype=dtype), probs)), missing)


def test_arrays_of_fills_only_are_missing_crops():
    for codec in [*kept_codecs(2, "float16"), *kept_codecs(2, "uint8"), *kept_codecs(2, "float32")]:
        arrays = {
            field.name: np.full(
                (3, 4, *field.shape) if field.per == "crop" else (3, *field.shape),
                field.fill,
                field.dtype,
            )
            for field in codec.fields(10)
        }
        assert np.isnan(codec.recover(arrays, 10)).all()


def test_more_kept_than_classes_is_refused():
    for codec in (MarginalSmoothing(k=6), MarginalRenorm(k=6)):
        with pytest.raises(UsageError, match="K=6 of C=5 classes"):
            codec.fields(5)
    with pytest.raises(UsageError, match="K=6 of C=5"):
        top_k(np.full((1, 5), 0.2, np.float32), 6)


@pytest.mark.parametrize("codec", [Hard(), MarginalRenorm(k=2)])
def test_a_temperature_without_a_tail_is_refused(codec):
    arrays = codec.encode(top_k(np.full((1, 1, 4), 0.25, np.float32), codec.kept(4)), 4)
    with pytest.raises(UsageError, match="temperature 2"):
        codec.decode(arrays, 4, temperature=2)


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_a_temperature_that_is_no_temperature_is_refused(temperature):
    for codec in (MarginalSmoothing(k=2), Full()):
        probs = np.full((1, 1, 4), 0.25, np.float32)
        with pytest.raises(UsageError, match="positive number"):
            round_trip(codec, probs, temperature)


def test_dense_codecs_have_no_sparse_form():
    codec = Full()
    with pytest.raises(UsageError, match="no sparse form"):
        codec.decode(codec.encode(np.full((1, 1, 4), 0.25, np.float32), 4), 4)


def test_labels_of_the_wrong_kind_are_refused():
    dense = np.full((1, 1, 4), 0.25, np.float32)
    with pytest.raises(UsageError, match="dense labels given"):
        MarginalSmoothing(k=2).encode(dense, 4)
    with pytest.raises(UsageError, match="3 kept classes given"):
        MarginalSmoothing(k=2).encode(top_k(dense, 3), 4)
    with pytest.raises(UsageError, match="top-K given"):
        Full().encode(top_k(dense, 3), 4)
    with pytest.raises(UsageError, match="labels of 4 classes for C=5"):
        Full().encode(dense, 5)
