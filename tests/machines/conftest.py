"""A store of random labels, and the tests' own PostgreSQL server (the catalogue's tests start it)."""

from __future__ import annotations

import numpy as np
import pytest

from labelstore import MarginalSmoothing
from tests.catalogue.conftest import postgresql
from tests.kept_stores import kept_store

__all__ = ["postgresql"]

SHAPE = (21, 8, 12)
"""N, M, C."""


def soft_labels(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape) * rng.uniform(0.5, 6, (shape[0], 1, 1))
    labels = np.exp(logits - logits.max(-1, keepdims=True))
    return (labels / labels.sum(-1, keepdims=True)).astype("f4")


@pytest.fixture
def make_store(tmp_path):
    def make(name="store", seed=0, **options):
        settings = {"images_per_shard": 8, "crops_per_shard": 4, "bad": {5}, **options}
        codec = MarginalSmoothing(k=3, dtype="float16")
        return kept_store(tmp_path / name, soft_labels(seed), codec, **settings)

    return make


def everything(labels):
    """Labels (N, M, C), boxes and flips of all images."""
    parts = [(labels.dense(block), *labels.crops(block)) for block in labels.blocks]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]
