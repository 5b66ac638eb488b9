"""An ensemble is the dense mean of its teachers' recovered, calibrated labels, however it is read."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

import labelstore
from labelstore import Full, MarginalRenorm, MarginalSmoothing, RegionThresholds
from labelstore.analysis.comparison import SMALLEST, compare, measures
from labelstore.calibration import Region, is_usable
from labelstore.codecs import SparseLabels
from labelstore.errors import UsageError
from labelstore.store import Mask
from labelstore.testing.filled_store import add_label_set, fill_blocks, filled_store

N, M, C = 11, 20, 16


def soft_labels(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, M, C)) * rng.uniform(0, 5, (N, M, 1))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    codec = MarginalSmoothing(k=3, dtype="float32", class_ids="plain")
    path = tmp_path_factory.mktemp("store") / "s"
    with filled_store(path, soft_labels(1), codec, name="a", images_per_shard=4, bad={5}) as opened:
        others = {
            "b": MarginalSmoothing(k=5, dtype="float16", class_ids="table"),
            "c": MarginalRenorm(k=2, class_ids="plain"),
            "dense": Full(dtype="float32"),
        }
        for seed, (name, other) in enumerate(others.items(), 2):
            add_label_set(opened, other, C, name=name)
            fill_blocks(opened, soft_labels(seed), name=name, bad={5})
        for name, low in {"a": 0.3, "b": 0.4}.items():
            rule = RegionThresholds(low=low, middle=0.5, top=0.9, epsilon=0.2)
            labelstore.calibrate(opened.label_set(name), rule, name=f"mask-{name}")
        yield opened


def sets(store, names):
    return [store.label_set(name) for name in names]


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "names", [("a", "b"), ("a", "b", "c"), ("a", "dense"), ("b", "b", "b", "b")]
)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_mean_is_the_dense_mean(store, names, temperature):
    labels = sets(store, names)
    if temperature != 1 and "c" in names:
        return  # mr has no temperature: refused below
    weights = [3, 1, 2, 2][: len(names)]
    together = labelstore.ensemble(labels, weights=weights)
    shares = np.array(weights) / sum(weights)
    for block in together.blocks:
        for columns in (None, range(1)):
            wanted = sum(
                share * one.dense(block, columns, temperature).astype(np.float64)
                for share, one in zip(shares, labels, strict=True)
            )
            found = together.dense(block, columns, temperature)
            np.testing.assert_allclose(found, wanted, atol=1e-6)
            read, regions = together.labels(block, columns, temperature)
            assert (regions == Region.IMPORTANT).all()
            if together.listed is None:
                assert not isinstance(read, SparseLabels)
                continue
            assert read.class_ids.shape[-1] == together.listed < C
            ordered = np.sort(read.class_ids, -1)
            there = ~np.isnan(read.rest)
            assert (ordered[..., 1:] != ordered[..., :-1])[there].all()
            assert (read.probs[..., :1] >= read.probs)[there].all()
            total = read.probs.sum(-1) + read.rest * (C - read.probs.shape[-1])
            np.testing.assert_allclose(total[there], 1, atol=1e-5)


@pytest.mark.parametrize("name", ["a", "b", "dense"])
def test_a_teacher_with_itself_is_that_teacher(store, name):
    one = store.label_set(name)
    for copies in (1, 2):
        together = labelstore.ensemble([one] * copies)
        for block in together.blocks:
            np.testing.assert_array_equal(together.dense(block), one.dense(block))
            np.testing.assert_array_equal(
                together.max_probability(block), one.max_probability(block)
            )
        np.testing.assert_array_equal(together.recover([0, 9]), one.recover([0, 9]))


def slow_mean(store, names, masks, weights):
    """The definition, crop by crop: (N, M, C), NaN where nobody keeps the crop; and whether somebody does."""
    mean, total = np.zeros((N, M, C)), np.zeros((N, M))
    for name, mask_name, weight in zip(names, masks, weights, strict=True):
        labels = store.label_set(name)
        dense = labels.recover(range(N)).astype(np.float64)
        keeps = np.ones((N, M), bool)
        if mask_name is not None:
            mask = store.mask(mask_name)
            codes = np.concatenate([mask.regions(block) for block in mask.blocks])
            for image, crop in np.argwhere(codes == Region.HARD):
                dense[image, crop] = 0.2 / (C - 1)
                dense[image, crop, labels.ground_truth[image]] = 0.8
            keeps = is_usable(codes)
        mean[keeps] += weight * dense[keeps]
        total[keeps] += weight
    with np.errstate(invalid="ignore"):
        return mean / total[..., None], total > 0


@pytest.mark.parametrize(
    ("names", "masks"),
    [
        (("a", "b"), ("mask-a", "mask-b")),
        (("a", "dense"), ("mask-a", None)),
        (("a",), ("mask-a",)),
    ],
)
def test_calibrated_labels_are_averaged_over_the_teachers_that_keep_a_crop(store, names, masks):
    weights = [2, 3][: len(names)]
    wanted, keeps = slow_mean(store, names, masks, weights)
    assert keeps.any()
    together = labelstore.ensemble(
        sets(store, names), [None if m is None else store.mask(m) for m in masks], weights
    )
    dense = np.concatenate([together.dense(block) for block in together.blocks])
    usable = np.concatenate([together.usable(block) for block in together.blocks])
    present = together.present
    np.testing.assert_array_equal(usable[present], keeps[present])
    np.testing.assert_allclose(dense[keeps], wanted[keeps], atol=1e-6)
    assert np.isnan(dense[~usable]).all()
    np.testing.assert_allclose(together.recover(range(N)), dense, atol=1e-6)
    crops = np.random.default_rng(0).integers(0, M, (N, 3))
    picked = together.recover(range(N), crops)
    np.testing.assert_allclose(picked, dense[np.arange(N)[:, None], crops], atol=1e-6)


def test_chosen_crops_are_those_of_their_blocks(store, monkeypatch):
    """In any order, also twice; a chunk of a mask is decoded once, however many images of it are asked for."""
    together = labelstore.ensemble(
        sets(store, ("a", "b")), [store.mask("mask-a"), store.mask("mask-b")]
    )
    images = [9, 0, 3, 0, 10, 2, 1, 8]
    crops = np.random.default_rng(0).integers(0, M, (len(images), 3))
    blocks = {block: together.dense(block) for block in together.blocks}
    whole = np.stack([blocks[row // 4][row % 4] for row in images])
    read, real = [], Mask.regions

    def regions(self, block, columns=None):
        read.append((self.name, block, columns))
        return real(self, block, columns)

    monkeypatch.setattr(Mask, "regions", regions)
    for asked in (None, crops):
        wanted = whole if asked is None else np.take_along_axis(whole, asked[..., None], 1)
        np.testing.assert_allclose(together.recover(images, asked), wanted, atol=1e-6)
        assert len(read) == 2 * 2  # two masks, two image blocks; the second time they are in memory


def test_what_does_not_belong_together_is_refused(store, tmp_path):
    a, b = sets(store, "ab")
    codec = MarginalSmoothing(k=2, class_ids="plain")
    with filled_store(tmp_path / "t", soft_labels(7), codec, images_per_shard=4) as other:
        cases = [
            ([a, other.label_set()], None, None, "different stores"),
            ([a, b], [store.mask("mask-b"), None], None, "same teacher"),
            ([a, b], [None], None, "one for each"),
            ([a, b], None, [1, 0], "above 0"),
            ([a, b], None, [1, np.nan], "above 0"),
            ([a, b], None, [1], "one for each"),
            ([], None, None, "one or more"),
        ]
        for labels, masks, weights, message in cases:
            with pytest.raises(UsageError, match=message) as caught:
                labelstore.ensemble(labels, masks, weights)
            assert "\n" not in str(caught.value)
    moved = copy.copy(b)
    moved.plan = dataclasses.replace(b.plan, name="second")
    for refuse in (lambda: labelstore.ensemble([a, moved]), lambda: compare([a, moved])):
        with pytest.raises(UsageError, match="plan"):
            refuse()
    add_label_set(store, codec, C - 1, name="fewer")
    with pytest.raises(UsageError, match="16 classes and fewer 15"):
        labelstore.ensemble([a, store.label_set("fewer")])
    with pytest.raises(UsageError, match="15"):
        compare([a, store.label_set("fewer")])
    together = labelstore.ensemble([a, store.label_set("c")])
    with pytest.raises(UsageError, match="temperature"):
        together.dense(0, temperature=2.0)


@pytest.mark.parametrize("names", [("a", "b"), ("a", "dense"), ("a", "c"), ("b", "a")])
def test_disagreement_is_what_dense_labels_say(store, names):
    first, second = sets(store, names)
    (found,) = compare([first, second]).pairs
    p, q = (one.recover(range(N)).astype(np.float64).reshape(-1, C) for one in (first, second))
    there = ~np.isnan(p[:, 0])
    p, q = p[there], q[there]

    def kl(p, q, floor=0.0):
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = p * (np.log(p) - np.log(np.maximum(q, floor)))
        return np.where(p > 0, terms, 0).sum(-1)

    js = (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2
    assert found.num_crops == len(p) == (N - 1) * M
    assert found.kl == pytest.approx(np.maximum(kl(p, q, SMALLEST), 0).mean(), rel=1e-5)
    assert found.kl_reversed == pytest.approx(np.maximum(kl(q, p, SMALLEST), 0).mean(), rel=1e-5)
    assert found.js == pytest.approx(js.mean(), rel=1e-5)
    assert found.js_worst == pytest.approx(js.max(), rel=1e-5)
    assert found.js_worst <= np.log(2)
    assert found.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert (measures(p, p)[2:] == 0).all()
