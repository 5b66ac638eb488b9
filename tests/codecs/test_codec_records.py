"""Codecs by name: options, records, and the arrays they declare."""

from __future__ import annotations

import json

import numpy as np
import pytest

from labelstore.codecs import (
    CODECS,
    Full,
    MarginalSmoothing,
    codec_from_options,
    codec_from_record,
    top_k,
)
from labelstore.errors import UsageError

ALL = [
    codec_from_record({"name": name} | ({"dtype": dtype} if name != "hard" else {}) | ids)
    for name in CODECS
    if CODECS[name].takes == "probabilities"
    for dtype in (["float16", "float32"] if name == "full" else ["float16", "float32", "uint8"])
    for ids in ([{}] if name == "full" else [{"class_ids": "plain"}, {"class_ids": "table"}])
] + [
    MarginalSmoothing(k=2, tail_classes=6, dtype=dtype) for dtype in ("float16", "float32", "uint8")
]


@pytest.mark.parametrize("codec", ALL, ids=repr)
def test_a_record_brings_the_codec_back(codec):
    assert codec_from_record(json.loads(json.dumps(codec.to_record()))) == codec


@pytest.mark.parametrize("codec", ALL, ids=repr)
@pytest.mark.parametrize("num_classes", [5, 20])
def test_encode_fills_exactly_the_declared_arrays(codec, num_classes):
    probs = np.random.default_rng(0).dirichlet(np.ones(num_classes), (3, 4)).astype(np.float32)
    kept = codec.kept(num_classes)
    arrays = codec.encode(probs if kept is None else top_k(probs, kept), num_classes)
    fields = codec.fields(num_classes)
    assert sorted(arrays) == sorted(field.name for field in fields)
    for field in fields:
        rows = (3, 4) if field.per == "crop" else (3,)
        assert arrays[field.name].shape == (*rows, *field.shape)
        assert arrays[field.name].dtype == np.dtype(field.dtype)
        assert len(field.dimensions) == len(field.shape)


@pytest.mark.parametrize("codec", ALL, ids=repr)
def test_the_largest_probability_needs_only_some_arrays(codec):
    probs = np.random.default_rng(1).dirichlet(np.full(20, 0.2), (3, 4)).astype(np.float32)
    probs[1, 1] = np.nan
    kept = codec.kept(20)
    arrays = codec.encode(probs if kept is None else top_k(probs, kept), 20)
    some = {name: arrays[name] for name in codec.max_probability_fields(20)}
    expected = codec.recover(arrays, 20).max(-1)
    np.testing.assert_allclose(codec.max_probability(some, 20), expected, rtol=1e-6)


def test_options():
    assert codec_from_options("ms") == MarginalSmoothing(k=5, dtype="float16")
    assert codec_from_options("ms", 10, "uint8") == MarginalSmoothing(k=10, dtype="uint8")
    assert codec_from_options("full", dtype="float32") == Full(dtype="float32")
    assert codec_from_options("ms", 3, tail_classes=9) == MarginalSmoothing(k=3, tail_classes=9)
    assert codec_from_options("mr", tail_classes=0) == codec_from_options("mr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("zip",), "choose one of full, hard, smoothing, ms, mr"),
        (("ms", 0), "K=0: keep at least one class"),
        (("ms", 3, None, -1), "tail_classes=-1: give the number of classes"),
        (("mr", 3, None, 9), "only ms has a tail of the image"),
        (("hard", 5), "only ms, mr and labelmap keep K classes"),
        (("ms", 5, "float64"), "choose one of float32, float16, uint8"),
        (("full", None, "uint8"), "choose one of float32, float16"),
    ],
)
def test_options_that_cannot_be_meant(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        codec_from_options(*options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "record", [{}, {"name": "gzip"}, {"name": "ms", "levels": 3}, {"name": "ms", "k": -1}]
)
def test_records_that_cannot_be_meant(record):
    with pytest.raises(UsageError):
        codec_from_record(record)
