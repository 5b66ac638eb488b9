"""A small store without a teacher, in both backends, and ways to damage it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labelstore import MarginalSmoothing
from labelstore.store import Store
from tests.kept_stores import kept_store


def soft_labels(num_images: int = 20, num_crops: int = 6, num_classes: int = 10) -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.dirichlet(np.full(num_classes, 0.1), (num_images, num_crops)).astype(np.float32)


@pytest.fixture(params=["zarr", "hdf5"])
def store(tmp_path: Path, request) -> Store:
    with kept_store(
        tmp_path / "store",
        soft_labels(),
        MarginalSmoothing(k=3),
        images_per_shard=8,
        crops_per_shard=3,
        bad=[3],
        backend=request.param,
    ) as store:
        yield store


def shard_paths(store: Store, kind: str = "labels") -> list[Path]:
    """Every file of the committed shards of the groups of one kind."""
    return [
        store.arrays.root / file.key
        for group in store.group_names()
        if group.startswith(kind)
        for row in store.catalogue.ledger.shards(group)
        for file in row.files
    ]


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(bytes(data))
