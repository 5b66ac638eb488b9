"""Stores with labels of known probabilities, and the same crops as a table made the slow way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import labelstore
from labelstore.codecs import MarginalSmoothing
from labelstore.testing.filled_store import IMAGE_SIZE, filled_store

NUM_CLASSES = 7


def soft_labels(seed=0, images=24, crops=12, num_classes=NUM_CLASSES):
    """(images, crops, C) float32 labels, some sharp and some not; no two probabilities are equal."""
    rng = np.random.default_rng(seed)
    sharp = rng.uniform(0.05, 2, (images, crops, 1))
    drawn = rng.gamma(np.broadcast_to(sharp, (images, crops, num_classes))) + 1e-4
    return (drawn / drawn.sum(-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def make_store(new_store):
    """make_store(labels, codec=..., **options of filled_store): a store, closed afterwards."""

    def make(labels, codec=None, **options):
        codec = MarginalSmoothing(k=5, dtype="float32") if codec is None else codec
        return new_store(labels, codec, **{"images_per_shard": 10, "crops_per_shard": 6} | options)

    return make


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """24 images x 12 crops in 3 image blocks, image 3 left out; nobody writes to it."""
    path = tmp_path_factory.mktemp("analysis") / "shared.labels"
    codec = MarginalSmoothing(k=5, dtype="float32")
    with filled_store(path, soft_labels(), codec, images_per_shard=10, crops_per_shard=6, bad={3}):
        pass
    with labelstore.open(path, readonly=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def table(store):
    """The shared store's crops as `slow_table` makes them."""
    return slow_table(store.label_set())


def slow_table(labels):
    """Every column of every labelled crop, one crop at a time from `recover` and `boxes`."""
    rows = []
    names = (*labels.store.class_names, None)
    height, width = IMAGE_SIZE
    for image in np.flatnonzero(labels.present).tolist():
        dense = labels.recover([image])[0].astype(np.float64)
        kept = labels.codec.kept(labels.num_classes) or labels.num_classes
        boxes, flips = labels.boxes([image])[0].tolist(), labels.flips([image])[0].tolist()
        truth = int(labels.ground_truth[image])
        for crop, probs in enumerate(dense):
            top, left, tall, wide = boxes[crop]
            order = np.argsort(-probs, kind="stable")
            rows.append(
                {
                    "image": image,
                    "key": labels.store.image_columns["key"][image],
                    "class": names[truth],
                    "class_name": names[truth],
                    "class_id": truth,
                    "image_height": height,
                    "image_width": width,
                    "crop": crop,
                    "top": top,
                    "left": left,
                    "height": tall,
                    "width": wide,
                    "flip": flips[crop],
                    "area": tall * wide / (height * width),
                    "aspect": wide / tall,
                    "centre_y": (top + tall / 2) / height,
                    "centre_x": (left + wide / 2) / width,
                    "max_probability": probs.max(),
                    "ground_truth_probability": probs[truth] if truth >= 0 else np.nan,
                    "entropy": -sum(p * np.log(p) for p in probs if p > 0),
                    "kept_mass": probs[order[:kept]].sum(),
                    "top1": names[order[0]],
                    "top1_name": names[order[0]],
                    "top1_id": order[0],
                    "agrees": order[0] == truth,
                    "agrees_top5": truth in order[:5],
                }
            )
    return pd.DataFrame(rows)
