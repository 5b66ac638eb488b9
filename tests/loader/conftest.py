"""A real store with known labels, and JPEGs of the size that its crops were made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelstore.calibration import RegionThresholds, calibrate
from labelstore.codecs import MarginalSmoothing
from labelstore.testing.filled_store import IMAGE_SIZE
from tests.kept_stores import kept_store

NUM_IMAGES, NUM_CROPS, NUM_CLASSES = 23, 60, 7


def soft_labels(num_images=NUM_IMAGES, num_crops=NUM_CROPS, num_classes=NUM_CLASSES, seed=0):
    """(N, M, C) float32 from flat to sharp, so that every region has crops."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_images, num_crops, num_classes))
    logits *= rng.uniform(0, 6, size=(num_images, num_crops, 1))
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return (probs / probs.sum(-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """23 images in three blocks of 8, 60 crops in chunk columns of 20, one bad image."""
    codec = MarginalSmoothing(k=3, dtype="float32", class_ids="plain")
    path = tmp_path_factory.mktemp("store") / "store"
    with kept_store(
        path, soft_labels(), codec, images_per_shard=8, crops_per_shard=60, bad={5}
    ) as filled:
        assert filled.plan().crops_per_chunk == 20
        yield filled


@pytest.fixture(scope="session")
def labels(store):
    return store.label_set()


@pytest.fixture(scope="session")
def mask(labels):
    rule = RegionThresholds(low=0.25, middle=0.4, top=0.95, epsilon=0.1)
    return calibrate(labels, rule, name="ferkd")


@pytest.fixture(scope="session")
def data(tmp_path_factory, store):
    """An image file for every key."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    for key in store.image_columns["key"]:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize(IMAGE_SIZE[::-1], Image.Resampling.BICUBIC).save(path, quality=85)
    return root


@pytest.fixture
def scratch(tmp_path) -> Path:
    return tmp_path / "scratch"
