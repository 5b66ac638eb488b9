"""The image's tail, stored once: recovered labels are labels, nearer to the teacher's, and old crops keep theirs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore.codecs import MarginalSmoothing, TopK, densify, top_k
from labelstore.codecs.codec_traits import stored_bytes
from labelstore.codecs.image_tail import MISSING, listed, read_tails
from labelstore.errors import UsageError

DTYPES = ["float32", "float16", "uint8"]


def labels_of_images(seed, images, crops, num_classes, spread=3.0, noise=1.0):
    """(n, m, C) float32: crops of an image resemble each other."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (images, 1, num_classes))
    logits = logits + rng.normal(0, noise, (images, crops, num_classes))
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return (probs / probs.sum(-1, keepdims=True)).astype(np.float32)


def kl(truth, found):
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(truth.astype(np.float64)) - np.log(np.maximum(found, 1e-30))
        return np.where(truth > 0, truth * logs, 0).sum(-1).mean()


@st.composite
def shards(draw):
    """Labels (n, m, C) of a shard, some crops missing, and a codec for them."""
    num_classes = draw(st.sampled_from([2, 3, 10, 60, 300]))
    probs = labels_of_images(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 9)),
        num_classes,
        draw(st.sampled_from([0.01, 1.0, 4.0, 20.0])),
        draw(st.sampled_from([0.0, 0.5, 3.0])),
    )
    missing = np.random.default_rng(0).random(probs.shape[:2]) < draw(st.sampled_from([0, 0.3, 1]))
    probs[missing] = np.nan
    codec = MarginalSmoothing(
        k=draw(st.integers(1, min(num_classes, 8))),
        tail_classes=draw(st.sampled_from([1, 4, 100, 1000])),
        dtype=draw(st.sampled_from(DTYPES)),
        class_ids=draw(st.sampled_from(["plain", "table"])),
    )
    return probs, codec


@settings(max_examples=150, deadline=None)
@given(shard=shards(), temperature=st.sampled_from([1.0, 0.5, 4.0, 20.0]))
def test_every_label_is_one_at_every_temperature(shard, temperature):
    probs, codec = shard
    num_classes = probs.shape[-1]
    arrays = codec.encode(top_k(probs, codec.kept(num_classes)), num_classes)
    labels = codec.decode(arrays, num_classes, temperature)
    there = ~np.isnan(probs[..., 0])
    np.testing.assert_array_equal(~np.isnan(labels.rest), there)
    dense = densify(labels, num_classes)
    np.testing.assert_array_equal(~np.isnan(dense).any(-1), there)
    assert (dense[there] >= 0).all()
    np.testing.assert_allclose(dense[there].sum(-1, dtype=np.float64), 1, atol=3e-6)
    ids = np.sort(labels.class_ids[there], axis=-1)
    assert (ids[..., 1:] != ids[..., :-1]).all(), "a class is listed once"
    k = codec.k
    beyond, own = labels.probs[there][:, k:], labels.probs[there][:, :k]
    last = own[:, -1:] * (1 + 1e-6)
    assert (beyond <= last).all(), "no class of the tail is above the K-th"
    assert (beyond >= labels.rest[there][:, None] * (1 - 1e-6)).all()
    assert (np.diff(beyond, axis=-1) <= 1e-7).all(), "likeliest first"
    if codec.num_tail_classes(num_classes):
        apart = listed(codec.decode_tailed(arrays, num_classes, temperature))
        np.testing.assert_allclose(densify(apart, num_classes), dense, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_classes_and_tail_are_those_of_ms_without_it(dtype):
    probs = labels_of_images(0, 5, 12, 200)
    with_tail = MarginalSmoothing(k=3, tail_classes=50, dtype=dtype)
    without = MarginalSmoothing(k=3, dtype=dtype)
    arrays = with_tail.encode(top_k(probs, 53), 200)
    found, plain = with_tail.decode(arrays, 200), without.decode(arrays, 200)
    np.testing.assert_array_equal(found.probs[..., :3], plain.probs)
    np.testing.assert_array_equal(found.class_ids[..., :3], plain.class_ids)
    np.testing.assert_array_equal(
        with_tail.max_probability(arrays, 200), without.max_probability(arrays, 200)
    )


@pytest.mark.parametrize("temperature", [1, 4, 20])
def test_it_is_nearer_to_the_teacher_than_an_even_tail(temperature):
    probs = labels_of_images(1, 12, 40, 300)
    truth = probs.astype(np.float64) ** (1 / temperature)
    truth /= truth.sum(-1, keepdims=True)
    found = {}
    for k, entries in ((3, 0), (3, 60), (3, 297)):
        codec = MarginalSmoothing(k=k, tail_classes=entries, dtype="uint8")
        arrays = codec.encode(top_k(probs, codec.kept(300)), 300)
        found[k, entries] = kl(truth, codec.recover(arrays, 300, temperature))
    assert found[3, 60] < 0.6 * found[3, 0]
    assert found[3, 297] < 0.9 * found[3, 60]


def test_crops_that_are_alike_are_recovered_to_the_precision_of_the_shares():
    probs = np.repeat(labels_of_images(2, 6, 1, 100), 7, axis=1)
    codec = MarginalSmoothing(k=4, tail_classes=96, dtype="float32")
    found = codec.recover(codec.encode(top_k(probs, 100), 100), 100)
    # half a step of an eighth of an octave either way, and as much of their sum
    np.testing.assert_allclose(found, probs, rtol=2 ** (1 / 8) - 1)
    assert kl(probs, found) < 1e-3


def test_a_table_belongs_to_its_shard():
    """New crops of an image are a shard of their own: what was stored of the others says the same."""
    first, later = labels_of_images(3, 4, 10, 80), labels_of_images(4, 4, 10, 80)
    codec = MarginalSmoothing(k=2, tail_classes=20)
    kept = [top_k(probs, codec.kept(80)) for probs in (first, later)]
    alone = codec.encode(kept[0], 80)
    both = TopK(
        **{
            name: np.concatenate([getattr(one, name) for one in kept], axis=1)
            for name in ("class_ids", "probs", "tail")
        }
    )
    together = codec.encode(both, 80)
    for name, array in alone.items():
        if not name.startswith("tail_") or name == "tail_code":
            np.testing.assert_array_equal(together[name][:, :10], array)
    assert (together["tail_share"] != alone["tail_share"]).any()
    # any crops of a shard decode alone, beside their images' tables
    some = {n: a if n in {"tail_gap", "tail_share"} else a[:, 4:7] for n, a in alone.items()}
    np.testing.assert_array_equal(codec.recover(some, 80), codec.recover(alone, 80)[:, 4:7])


def test_missing_crops_leave_no_mark_on_the_table():
    probs = labels_of_images(5, 3, 8, 50)
    with_gap = probs.copy()
    with_gap[:, 5:] = np.nan
    with_gap[2] = np.nan
    codec = MarginalSmoothing(k=2, tail_classes=10)
    whole = codec.encode(top_k(probs[:, :5], 12), 50)
    gappy = codec.encode(top_k(with_gap, 12), 50)
    for name in ("tail_gap", "tail_share"):
        np.testing.assert_array_equal(gappy[name][:2], whole[name][:2])
    assert (gappy["tail_share"][2] == MISSING).all()


def test_tables_name_the_classes_with_most_mass_beyond_the_top_k():
    probs = np.array([[[0.5, 0.3, 0.1, 0.06, 0.04, 0], [0.5, 0.1, 0.3, 0.06, 0.04, 0]]], "f4")
    codec = MarginalSmoothing(k=2, tail_classes=3, dtype="float32")
    tables = read_tails(codec.encode(top_k(probs, 5), 6))
    # 1 and 2 are in the tail of one crop each, with 0.1; the others in both
    assert tables.class_ids.tolist() == [[1, 2, 3]]
    shares = np.array([0.1, 0.1, 0.06, 0.04]) / 0.3
    found = [*tables.shares[0], tables.unnamed[0]]
    np.testing.assert_allclose(found, shares, rtol=2 ** (1 / 16) - 1 + 0.02)


def test_labels_of_fewer_classes_make_smaller_tables():
    probs = labels_of_images(6, 3, 8, 50)
    codec = MarginalSmoothing(k=2, tail_classes=20, dtype="float32")
    none = codec.recover(codec.encode(top_k(probs, 2), 50), 50)
    even = MarginalSmoothing(k=2, dtype="float32")
    np.testing.assert_allclose(none, even.recover(even.encode(top_k(probs, 2), 50), 50), atol=1e-7)
    some = codec.recover(codec.encode(top_k(probs, 6), 50), 50)
    assert kl(probs, some) < kl(probs, none)
    with pytest.raises(UsageError, match="1 kept classes given to a codec that keeps K=2"):
        codec.encode(top_k(probs, 1), 50)


def test_a_table_costs_less_than_the_classes_that_it_replaces():
    probs = labels_of_images(7, 16, 100, 400)

    def size(codec):
        return stored_bytes(codec, top_k(probs, codec.kept(400)), 400) / probs[..., 0].size

    tail = size(MarginalSmoothing(k=3, tail_classes=100, dtype="uint8"))
    assert tail < size(MarginalSmoothing(k=5, dtype="uint8"))
    assert tail < size(MarginalSmoothing(k=3, dtype="uint8")) + 2.0


def test_a_record_without_a_tail_is_as_versions_write_it_that_know_of_none():
    assert "tail_classes" not in MarginalSmoothing(k=3).to_record()
    assert MarginalSmoothing(k=3, tail_classes=9).to_record()["tail_classes"] == 9
