"""`logits`: what comes back is softmax(outputs / T), whatever the outputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from labelstore.codecs import Logits, codec_from_options, codec_from_record
from labelstore.errors import RejectedInput, UsageError

OUTPUTS = arrays(
    np.float32,
    array_shapes(min_dims=3, max_dims=3, max_side=6),
    elements=st.floats(-60_000, 60_000, width=32),
)


def softmax(outputs, temperature):
    scaled = outputs.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(OUTPUTS, st.sampled_from(["float16", "float32"]), st.floats(0.05, 50))
def test_recovered_labels_are_the_softmax_of_what_is_stored(outputs, dtype, temperature):
    codec = Logits(dtype=dtype)
    count = outputs.shape[-1]
    arrays_ = codec.encode(outputs, count)
    found = codec.recover(arrays_, count, temperature)
    np.testing.assert_allclose(found, softmax(outputs.astype(dtype), temperature), atol=2e-5)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    assert (found >= 0).all()
    np.testing.assert_array_equal(
        codec.max_probability(arrays_, count), codec.recover(arrays_, count).max(-1)
    )


def test_float16_keeps_a_teachers_labels():
    outputs = np.random.default_rng(0).normal(size=(4, 50, 1000)).astype(np.float32) * 4
    codec = Logits()
    for temperature in (1.0, 20.0):
        found = codec.recover(codec.encode(outputs, 1000), 1000, temperature).astype(np.float64)
        wanted = softmax(outputs, temperature)
        kl = (wanted * np.log(wanted / np.maximum(found, 1e-30))).sum(-1)
        assert kl.mean() < 1e-4
        assert kl.max() < 1e-3


def test_missing_crops_stay_missing():
    outputs = np.ones((2, 3, 4), np.float32)
    outputs[1] = np.nan
    found = Logits().recover(Logits().encode(outputs, 4), 4, 2.0)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[0], np.float32(0.25))


@pytest.mark.parametrize("value", [70_000.0, -70_000.0, np.inf, -np.inf])
def test_outputs_beyond_float16_are_refused_and_fit_float32(value):
    outputs = np.zeros((1, 2, 3), np.float32)
    outputs[0, 1, 2] = value
    with pytest.raises(RejectedInput, match="`dtype=float32`"):
        Logits().encode(outputs, 3)
    if np.isfinite(value):
        codec = Logits(dtype="float32")
        np.testing.assert_allclose(
            codec.recover(codec.encode(outputs, 3), 3), softmax(outputs, 1), atol=1e-6
        )


def test_records_and_options():
    codec = codec_from_options("logits", dtype="float32")
    assert codec == Logits(dtype="float32") == codec_from_record(codec.to_record())
    (field,) = codec.fields(128)
    assert (field.shape, field.dtype, field.dimensions) == ((128,), "<f4", ("output",))
    for wrong in ({"dtype": "int8"}, {"k": 5}):
        with pytest.raises(UsageError):
            codec_from_record({"name": "logits", **wrong})
    with pytest.raises(UsageError, match="no sparse form"):
        codec.decode(codec.encode(np.zeros((1, 1, 3), np.float32), 3), 3)
    for temperature in (0, -1, np.nan, np.inf):
        with pytest.raises(UsageError):
            codec.recover(codec.encode(np.zeros((1, 1, 3), np.float32), 3), 3, temperature)
