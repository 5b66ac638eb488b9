"""`pq`: every output comes from the nearest entry of the label set's codebook, at the best scale; and 8-bit `logits`."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from labelstore.codecs import (
    Logits,
    ProductCodes,
    codec_from_options,
    codec_from_record,
    identity_of,
    in_short,
)
from labelstore.codecs.product_codes import ENTRIES, from_text
from labelstore.errors import RejectedInput, UsageError

OUTPUTS = arrays(
    np.float32,
    array_shapes(min_dims=3, max_dims=3, max_side=9),
    elements=st.floats(-60_000, 60_000, width=32, allow_subnormal=False),
)


@settings(max_examples=60, deadline=None)
@given(OUTPUTS, st.integers(1, 5), st.floats(0.05, 50))
def test_outputs_are_the_nearest_entries_at_the_best_scale(outputs, width, temperature):
    count = outputs.shape[-1]
    flat = outputs.reshape(-1, count).astype(np.float64)
    sample = np.random.default_rng(0).normal(size=(40, count)).astype("f4")
    codec = ProductCodes(values_per_code=width).trained(sample)
    arrays_ = codec.encode(outputs, count)
    fields = codec.fields(count)
    assert sorted(arrays_) == sorted(field.name for field in fields)
    for field in fields:
        assert arrays_[field.name].shape == (*outputs.shape[:2], *field.shape)
        assert arrays_[field.name].dtype == np.dtype(field.dtype)
    found = codec.outputs(arrays_, count).reshape(-1, count).astype(np.float64)
    # the least squared error of all multiples of these entries: what is left is at a right angle to them
    left = flat - found
    size = np.square(flat).sum(-1)
    assert (np.square(left).sum(-1) <= size * (1 + 1e-5)).all()
    assert (np.abs((left * found).sum(-1)) <= 1e-4 * np.maximum(size, 1e-30)).all()
    # no other entry of a part's codebook is nearer
    book = from_text(codec.codebook, width).astype(np.float64)
    rms = np.sqrt(size / count)
    # a subnormal scale has too few bits to say how far a value is from an entry
    for row in np.flatnonzero(rms > np.finfo("f4").tiny):
        padded = np.zeros(len(book) * width)
        padded[:count] = flat[row] / rms[row]
        distance = np.square(padded.reshape(-1, 1, width) - book).sum(-1)
        codes = arrays_["product_code"].reshape(-1, len(book))[row]
        chosen = distance[np.arange(len(book)), codes]
        assert (chosen <= distance.min(-1) + 1e-4 * (1 + distance.min(-1))).all()
    labels = codec.recover(arrays_, count, temperature)
    np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-5)
    assert (labels >= 0).all()


@settings(max_examples=60, deadline=None)
@given(OUTPUTS)
def test_eight_bits_are_within_half_a_step_of_each_crop(outputs):
    codec, count = Logits(dtype="uint8"), outputs.shape[-1]
    arrays_ = codec.encode(outputs, count)
    found = codec.outputs(arrays_, count).astype(np.float64)
    spread = outputs.max(-1, keepdims=True).astype(np.float64) - outputs.min(-1, keepdims=True)
    rounding = 1e-6 * np.abs(outputs).max(-1, keepdims=True)
    assert (np.abs(found - outputs) <= spread / 254 / 2 + rounding).all()
    np.testing.assert_allclose(codec.recover(arrays_, count).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("codec", [Logits(dtype="uint8"), ProductCodes(values_per_code=3)])
def test_missing_and_blank_crops(codec):
    outputs = np.random.default_rng(1).normal(size=(2, 3, 7)).astype("f4")
    if isinstance(codec, ProductCodes):
        codec = codec.trained(outputs.reshape(-1, 7))
    outputs[1, 2], outputs[0, 1] = np.nan, 0
    arrays_ = codec.encode(outputs, 7)
    found = codec.outputs(arrays_, 7)
    assert np.isnan(found[1, 2]).all()
    assert (found[0, 1] == 0).all()
    np.testing.assert_allclose(
        np.delete(found.reshape(6, 7), 5, 0), np.delete(outputs.reshape(6, 7), 5, 0), atol=0.02
    )
    for field in codec.fields(7):
        value = arrays_[field.name][1, 2]
        assert (np.isnan(value) if np.isnan(field.fill) else value == field.fill).all()


def test_a_codebook_is_learnt_once_and_is_a_small_part_of_the_outputs():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(30, 64)).astype("f4")
    outputs = centres[rng.integers(30, size=4000)] + 0.1 * rng.normal(size=(4000, 64)).astype("f4")
    codec = ProductCodes(values_per_code=8).trained(outputs[:3000])
    assert codec == ProductCodes(values_per_code=8).trained(outputs[:3000])
    found = codec.outputs(codec.encode(outputs[None, 3000:], 64), 64)[0]
    cosine = (found * outputs[3000:]).sum(-1)
    cosine /= np.linalg.norm(found, axis=-1) * np.linalg.norm(outputs[3000:], axis=-1)
    assert cosine.mean() > 0.99
    # entries of another codebook are not as near
    other = ProductCodes(values_per_code=8).trained(rng.normal(size=(3000, 64)).astype("f4"))
    worse = other.outputs(other.encode(outputs[None, 3000:], 64), 64)[0]
    assert np.square(worse - outputs[3000:]).mean() > 2 * np.square(found - outputs[3000:]).mean()


def test_reading_needs_no_faiss():
    codec = ProductCodes(values_per_code=2).trained(np.eye(6, dtype="f4"))
    program = (
        "import json, sys; import numpy as np\n"
        "sys.modules['faiss'] = None\n"
        "from labelstore.codecs import ProductCodes, codec_from_record\n"
        "codec = codec_from_record(json.load(sys.stdin))\n"
        "one = np.eye(6, dtype='f4')[None]\n"
        "print(codec.outputs(codec.encode(one, 6), 6).argmax(-1)[0].tolist())\n"
        "try: ProductCodes().trained(np.random.default_rng(0).normal(size=(300, 6)).astype('f4'))\n"
        "except Exception as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(codec.to_record()),
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = ran.stdout.splitlines()
    assert json.loads(first) == list(range(6))
    assert "labelstore[pq]" in second


def test_records_and_what_is_refused():
    codec = codec_from_options("pq", values_per_code=4).trained(np.eye(8, dtype="f4"))
    record = json.loads(json.dumps(codec.to_record()))
    assert codec_from_record(record) == codec
    assert identity_of(record) == {"name": "pq", "values_per_code": 4}
    assert in_short(record)["codebook"] == record["codebook"][:16]
    assert from_text(record["codebook"], 4).shape == (2, ENTRIES, 4)
    damaged = record["codebook"][:40] + ("A" if record["codebook"][40] != "A" else "B")
    for text in (damaged + record["codebook"][41:], "x:", "", record["codebook"][:-8]):
        with pytest.raises(RejectedInput, match="damaged"):
            codec_from_record({**record, "codebook": text})
    with pytest.raises(RejectedInput, match="damaged"):
        codec_from_record({**record, "values_per_code": 3})
    with pytest.raises(UsageError, match="learnt for another teacher"):
        codec.fields(12)
    with pytest.raises(UsageError, match="without a codebook"):
        ProductCodes().encode(np.ones((1, 1, 8), "f4"), 8)
    for wrong in (0, 5000, 2.0, True):
        with pytest.raises(UsageError, match="values_per_code"):
            codec_from_record({"name": "pq", "values_per_code": wrong})
    for wrong in ({"k": 5}, {"dtype": "uint8"}, {"tail_classes": 3}):
        with pytest.raises(UsageError):
            codec_from_options("pq", **wrong)
    with pytest.raises(UsageError, match="only pq has codes"):
        codec_from_options("ms", values_per_code=20)
    with pytest.raises(UsageError, match="no vectors"):
        ProductCodes().trained(np.full((3, 8), np.nan, "f4"))
