"""A temperature is the one of the teacher's logits: labels made at T0, asked for at T, are softmax(logits / T)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import labelstore
from labelstore.analysis.comparison import compare
from labelstore.codecs import (
    Full,
    Hard,
    Logits,
    MarginalRenorm,
    MarginalSmoothing,
    Smoothing,
    densify,
    top_k,
)
from labelstore.errors import UsageError
from labelstore.exchange import export_labels
from labelstore.labelling.deriving import derive
from labelstore.store import PlanOptions
from labelstore.testing.filled_store import (
    add_label_set,
    empty_store,
    fill_blocks,
    filled_store,
)

N, M, C = 6, 4, 9
MADE_AT = ASKED = (1.0, 2.0, 4.0, 20.0)
LOGITS = np.random.default_rng(3).normal(0, 4, (N, M, C))


def softmax(temperature, logits=LOGITS):
    scaled = logits / temperature
    probs = np.exp(scaled - scaled.max(-1, keepdims=True))
    return probs / probs.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def store_of(tmp_path_factory):
    """A store of one label set, made at T0 with a codec."""
    made = {}

    def make(codec, temperature):
        key = codec, temperature
        if key not in made:
            path = tmp_path_factory.mktemp("tempered") / "s"
            labels = softmax(temperature).astype(np.float32)
            if codec.takes == "outputs":
                labels = LOGITS.astype(np.float32)
            plan = PlanOptions(num_crops=M, images_per_shard=4, crops_per_shard=2)
            made[key] = store = empty_store(path, np.arange(N) % C, C, plan)
            add_label_set(store, codec, C, name="teacher", temperature=temperature)
            fill_blocks(store, labels, name="teacher")
        return made[key].label_set("teacher")

    yield make
    for store in made.values():
        store.close()


@pytest.mark.sample(8)
@pytest.mark.parametrize(("made_at", "asked"), [*itertools.product(MADE_AT, (None, *ASKED))])
@pytest.mark.parametrize(
    "codec", [Full(dtype="float32"), MarginalSmoothing(k=C, dtype="float32")], ids=["full", "ms"]
)
def test_labels_are_the_teachers_at_any_temperature(store_of, codec, made_at, asked):
    labels = store_of(codec, made_at)
    assert labels.temperature == made_at
    wanted = softmax(made_at if asked is None else asked)
    images = range(N)
    np.testing.assert_allclose(labels.recover(images, temperature=asked), wanted, atol=1e-6)
    for block in labels.blocks:
        rows = labels.block_rows(block)
        here = wanted[rows.start : rows.stop]
        np.testing.assert_allclose(labels.dense(block, None, asked), here, atol=1e-6)
        np.testing.assert_allclose(
            labels.max_probability(block, None, asked), here.max(-1), atol=1e-6
        )
        if codec.name == "ms":
            sparse = densify(labels.sparse(block, None, asked), C)
            np.testing.assert_allclose(sparse, here, atol=1e-6)


@pytest.mark.parametrize("asked", [None, *ASKED])
def test_outputs_before_softmax_are_at_one(store_of, asked):
    labels = store_of(Logits(dtype="float32"), 1.0)
    wanted = softmax(asked or 1.0)
    np.testing.assert_allclose(labels.recover(range(N), temperature=asked), wanted, atol=1e-6)


@pytest.mark.sample(7)
@pytest.mark.parametrize(("made_at", "asked"), [*itertools.product(MADE_AT, ASKED)])
@pytest.mark.parametrize("k", [1, 3])
def test_a_tail_bounds_what_tempering_can_lose(store_of, made_at, asked, k):
    """Kept classes of ms: exact at T0; elsewhere within what the tail can be, from even to as uneven as p_K allows.

    With a = T0 / T and tail mass t, the tail's sum of p^a lies between (C - K)^(1 - a) t^a, which even classes have and
    ms takes, and t p_K^(a - 1), which no classes below p_K pass.
    """
    labels = store_of(MarginalSmoothing(k=k, dtype="float32"), made_at)
    found = labels.recover(range(N), temperature=asked)
    true, kept = softmax(asked), top_k(softmax(made_at).astype(np.float32), k)
    a = made_at / asked
    powers = kept.probs.astype(float) ** a
    even = (C - k) ** (1 - a) * kept.tail.astype(float) ** a
    uneven = kept.tail * kept.probs[..., -1].astype(float) ** (a - 1)
    taken = powers / (powers.sum(-1) + even)[..., None]
    limit = powers / (powers.sum(-1) + uneven)[..., None]
    ids = kept.class_ids.astype(np.int64)
    np.testing.assert_allclose(np.take_along_axis(found, ids, -1), taken, atol=2e-6)
    exact = np.take_along_axis(true, ids, -1)
    low, high = np.minimum(taken, limit), np.maximum(taken, limit)
    assert ((low - 2e-6 <= exact) & (exact <= high + 2e-6)).all()
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def test_smoothing_is_ms_of_one_class_at_any_temperature(store_of):
    one, other = (
        store_of(c, 4.0)
        for c in (Smoothing(dtype="float32"), MarginalSmoothing(k=1, dtype="float32"))
    )
    for asked in (None, *ASKED):
        np.testing.assert_array_equal(
            one.recover(range(N), temperature=asked), other.recover(range(N), temperature=asked)
        )


@pytest.mark.parametrize(("codec", "made_at"), [(MarginalRenorm(k=3), 4.0), (Hard(), 1.0)])
def test_labels_that_keep_too_little_stay_where_they_were_made(store_of, codec, made_at):
    labels = store_of(codec, made_at)
    np.testing.assert_array_equal(
        labels.recover(range(N)), labels.recover(range(N), temperature=made_at)
    )
    for call in (labels.recover, labels.dense, labels.sparse, labels.max_probability):
        with pytest.raises(
            UsageError, match=f"temperature 2 with '{codec.name}' labels made at {made_at:g}"
        ):
            call([0] if call == labels.recover else 0, temperature=2.0)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf")])
def test_what_is_no_temperature_is_refused(store_of, wrong):
    with pytest.raises(UsageError, match="a positive number"):
        store_of(Full(dtype="float32"), 2.0).recover([0], temperature=wrong)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Label sets of two teachers on one plan, made at 1 and at 4."""
    codec = Full(dtype="float32")
    path = tmp_path_factory.mktemp("two") / "s"
    with filled_store(path, softmax(1).astype("f4"), codec, name="one") as store:
        for name, made_at in (("four", 4.0), ("alike", 4.0)):
            add_label_set(store, codec, C, name=name, temperature=made_at)
            fill_blocks(store, softmax(made_at, LOGITS[..., ::-1]).astype("f4"), name=name)
        yield store


@pytest.mark.sample(3)
@pytest.mark.parametrize("asked", ASKED)
def test_an_ensemble_brings_each_label_set_to_the_temperature_in_force(two, asked):
    both = labelstore.ensemble([two.label_set("one"), two.label_set("four")])
    wanted = (softmax(asked) + softmax(asked, LOGITS[..., ::-1])) / 2
    np.testing.assert_allclose(both.recover(range(N), temperature=asked), wanted, atol=1e-6)
    np.testing.assert_allclose(both.dense(0, None, asked), wanted, atol=1e-6)


def test_an_ensemble_of_several_temperatures_asks_for_one(two):
    both = labelstore.ensemble([two.label_set("one"), two.label_set("four")])
    for call in (both.recover, both.dense, both.max_probability):
        with pytest.raises(UsageError, match=r"one at T=1, four at T=4\): give the temperature"):
            call([0] if call == both.recover else 0)
    alike = labelstore.ensemble([two.label_set("four"), two.label_set("alike")])
    assert alike.temperature_in_force() == 4
    np.testing.assert_allclose(alike.dense(0), softmax(4, LOGITS[..., ::-1]), atol=1e-6)


def test_teachers_are_compared_at_one_temperature(two):
    """The same logits, made at two temperatures, do not disagree."""
    codec = Full(dtype="float32")
    add_label_set(two, codec, C, name="same", temperature=4.0)
    fill_blocks(two, softmax(4).astype("f4"), name="same")
    (found,) = compare([two.label_set("one"), two.label_set("same")]).pairs
    assert found.top1_agreement == 1
    assert found.kl == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("asked", [None, 1.0, 4.0, 20.0])
def test_exports_are_at_the_temperature_that_they_state(store_of, tmp_path, asked):
    labels = store_of(Full(dtype="float32"), 4.0)
    report = export_labels(labels, format="npz", target=tmp_path / "out", temperature=asked)
    assert report.temperature == (asked or 4.0)
    parts = [np.load(path)["prob"] for path in sorted((tmp_path / "out").iterdir())]
    np.testing.assert_allclose(np.concatenate(parts), softmax(asked or 4.0), atol=1e-6)


def test_exports_whose_readers_would_take_labels_for_others_are_refused(store_of, tmp_path):
    made_at_4 = store_of(MarginalSmoothing(k=3, dtype="float32"), 4.0)
    outputs = store_of(Logits(dtype="float32"), 1.0)
    for labels, format_name, asked, words in (
        (made_at_4, "ml-dr", None, "labels at temperature 4 in ml-dr files"),
        (outputs, "npz", 2.0, "they hold what comes before the softmax"),
        (store_of(MarginalRenorm(k=3), 4.0), "npz", 1.0, "with 'mr' labels made at 4"),
    ):
        with pytest.raises(UsageError, match=words):
            export_labels(labels, format=format_name, target=tmp_path / "out", temperature=asked)
    assert not list(tmp_path.iterdir())


def test_a_variant_keeps_the_temperature(store_of):
    labels = store_of(Full(dtype="float32"), 4.0)
    variant = derive(labels, MarginalSmoothing(k=C, dtype="float32"))
    assert variant.temperature == 4
    np.testing.assert_allclose(variant.recover(range(N), temperature=1), softmax(1), atol=1e-6)


@pytest.mark.parametrize("made_at", [1.0, 4.0])
def test_a_mask_says_at_which_temperature_it_looked(store_of, made_at):
    labels = store_of(Full(dtype="float32"), made_at)
    rule = labelstore.RegionThresholds(low=0.2, middle=0.3, top=0.9)
    for _ in range(2):  # the second finds everything done
        mask = labelstore.calibrate(labels, rule, name="m")
    assert mask.temperature == made_at
    assert mask.rule.get("temperature", 1.0) == made_at
    codes = np.concatenate([mask.regions(block) for block in mask.blocks])
    np.testing.assert_array_equal(codes, rule.regions(softmax(made_at).max(-1)))
