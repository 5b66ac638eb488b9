"""Distances between label sets, suspicious images and duplicates, against the definitions written out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from labelstore.analysis.comparison import SMALLEST, compare
from labelstore.analysis.noise import duplicates, label_noise
from labelstore.codecs import Full, Hard, MarginalSmoothing
from labelstore.errors import UsageError
from labelstore.testing.filled_store import add_label_set, fill_blocks, filled_store
from tests.analysis.conftest import NUM_CLASSES, soft_labels

CODECS = {
    "ms": (MarginalSmoothing(k=5, dtype="float32"), 0),
    "full": (Full(dtype="float32"), 0),
    "other": (MarginalSmoothing(k=3, dtype="float32"), 1),
    "full_other": (Full(dtype="float32"), 1),
    "hard": (Hard(), 0),
}


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A store with label sets of two teachers in sparse, dense and one-hot form; image 3 was left out."""
    path = tmp_path_factory.mktemp("several") / "several.labels"
    codec, seed = CODECS["ms"]
    store = filled_store(path, soft_labels(seed), codec, name="ms", images_per_shard=10, bad={3})
    for name, (codec, seed) in CODECS.items():
        if name != "ms":
            add_label_set(store, codec, NUM_CLASSES, name=name)
            fill_blocks(store, soft_labels(seed), name=name, bad={3})
    yield store
    store.close()


@pytest.mark.slow
def test_distances_are_the_mean_cross_entropies(several):
    found = compare([several.label_set(name) for name in CODECS], ground_truth=True)
    labels = several.label_set("ms")
    images = np.flatnonzero(labels.present)
    dense = {name: several.label_set(name).recover(images).astype(np.float64) for name in CODECS}
    truth = labels.ground_truth[images]
    dense["ground truth"] = np.repeat(np.eye(NUM_CLASSES)[truth][:, None], 12, axis=1)
    by_class = found.by_class().set_index(["class", "a", "b"])
    assert len(by_class.groupby(["a", "b"])) == 5 * 4 + 5
    assert found.crops.sum() == 23 * 12
    for a, b in {(a, b) for _, a, b in by_class.index}:
        crossed = -(dense[b] * np.log(np.maximum(dense[a], SMALLEST))).sum(-1)
        assert found.distance(a, b) == pytest.approx(crossed.mean(), rel=1e-4), (a, b)
        differs = dense[a].argmax(-1) != dense[b].argmax(-1)
        assert found.disagreement(a, b) == pytest.approx(differs.mean()), (a, b)
        row = by_class.loc[(several.class_names[2], a, b)]
        assert row.distance == pytest.approx(crossed[truth == 2].mean(), rel=1e-4)
    record = found.to_record()
    assert json.loads(json.dumps(record)) == record


def test_a_label_is_as_far_from_itself_as_its_entropy_and_no_label_is_nearer(several):
    # Gibbs: -sum p log q is least where q = p
    found = compare(
        [several.label_set("full"), several.label_set("ms"), several.label_set("other")]
    )
    full = several.label_set("full")
    dense = full.recover(np.flatnonzero(full.present)).astype(np.float64)
    entropy = -(dense * np.log(dense)).sum(-1).mean()
    assert found.distance("ms", "full") >= entropy - 1e-6
    assert found.distance("other", "full") > found.distance("ms", "full")


def test_what_cannot_be_compared_is_refused(several, make_store):
    other = make_store(soft_labels(images=4, num_classes=9)).label_set()
    with pytest.raises(UsageError, match="not on one crop plan"):
        compare([several.label_set("ms"), other])
    with pytest.raises(UsageError, match="no label set"):
        compare([])
    for share in (0, -1, 2, float("nan")):
        with pytest.raises(UsageError, match="share"):
            compare([several.label_set("ms")], share=share)


def test_images_with_a_wrong_label_are_found(make_store):
    labels = soft_labels(images=21)
    certain = 0.9 * np.eye(NUM_CLASSES, dtype=np.float32) + 0.1 / NUM_CLASSES
    truth = np.arange(21) % NUM_CLASSES
    labels[:] = certain[truth][:, None]
    labels[5, :10] = certain[1]  # 10 of 12 crops of class 5's image look like class 1
    labels[16, :8] = certain[4]
    labels[9, :6] = certain[3]  # just half: not more than half
    labels[12, :8:2], labels[12, 1:8:2] = certain[0], certain[1]  # no class has most of them
    store = make_store(labels, bad={20})
    found = label_noise(store.label_set())
    assert found.images[["image", "suggested"]].to_numpy().tolist() == [
        [5, "class0001"],
        [16, "class0004"],
    ]
    first = found.images.iloc[0]
    assert first["class"] == "class0005"
    assert first["share"] == pytest.approx(10 / 12)
    assert first["ground_truth_probability"] == pytest.approx(
        (2 * 0.9 + 12 * 0.1 / 7) / 12, abs=1e-5
    )
    assert first["crop"] < 10
    assert (found.num_suspects, found.num_images) == (2, 20)
    assert found.pairs[["class", "suggested", "images"]].to_numpy().tolist() == [
        ["class0002", "class0004", 1],
        ["class0005", "class0001", 1],
    ]
    assert json.dumps(found.to_record())
    assert len(label_noise(store.label_set(), limit=1).images) == 1
    assert label_noise(store.label_set(), confidence=0.95).num_suspects == 0


def test_noise_needs_a_ground_truth_and_sense(make_store, store):
    labels = make_store(soft_labels(images=4), ground_truth=np.full(4, -1)).label_set()
    with pytest.raises(UsageError, match="no ground truth"):
        label_noise(labels)
    for arguments in (
        {"confidence": 1.0},
        {"confidence": float("nan")},
        {"min_share": -0.1},
        {"limit": 0},
    ):
        with pytest.raises(UsageError, match=r"confidence|limit"):
            label_noise(store.label_set(), **arguments)


def test_equal_bytes_and_equal_names_are_listed(store, monkeypatch):
    facts = dict(store.image_columns)
    facts["digest"] = np.arange(24, dtype=np.uint8).repeat(16).reshape(24, 16)
    facts["digest"][[4, 9, 11]] = 99
    facts["has_digest"] = np.ones(24, bool)
    facts["has_digest"][11] = False  # not decoded: nothing is known of it
    facts["key"] = np.array([f"class{i % 7:04d}/{i}.jpg" for i in range(24)], object)
    facts["key"][20] = "class0006/2.png"
    monkeypatch.setitem(store.__dict__, "image_columns", facts)
    found = duplicates(store)
    assert found.drop(columns="group").to_numpy().tolist() == [
        ["digest", 4, "class0004/4.jpg", "class0004", 2],
        ["digest", 9, "class0002/9.jpg", "class0002", 2],
        ["name", 2, "class0002/2.jpg", "class0002", 2],
        ["name", 20, "class0006/2.png", "class0006", 2],
    ]
    facts["key"][20] = "class0006/20.png"
    facts["has_digest"][:] = False
    assert len(duplicates(store)) == 0


def test_a_label_set_that_is_named_twice_is_not_counted_twice(several):
    labels = several.label_set("ms")
    with pytest.raises(UsageError, match="is given 2 times"):
        compare([labels, labels])
