"""Which image each row of the batch files is (`batch_files`): listed beside them, or drawn again from a seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput
from labelstore.exchange.labels import softmax
from labelstore.exchange.readers.batch_contents import read_batch
from labelstore.exchange.readers.label_values import finite
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.inert_values import Value
from labelstore.untrusted.refusal import Refused, named, read_bytes

MAX_JSON_BYTES = 1 << 30
MAX_EPOCHS = 10_000
PERMUTATIONS_PER_EPOCH = (2, 1)
"""That RandomSampler draws: today's, and that of older versions of torch."""


Flavour = Literal["sre2l", "lpld", "lpqld"]


def listed_order(
    source: Path, batches: Mapping[Path, tuple[int, int]], flavour: Flavour, images: ImageSource
) -> dict[Path, NDArray[np.int64]]:
    """Image rows of every batch, as the sampler's file says."""
    path = source / f"sampler_indices_{'batch' if flavour == 'lpqld' else 'epoch'}.json"
    with named(path):
        try:
            listed = json.loads(read_bytes(path, MAX_JSON_BYTES))
        except (ValueError, RecursionError):
            raise Refused("is no JSON") from None
        if not isinstance(listed, dict):
            raise Refused("is no table of indices")
        rows = {str(key): _indices(value, len(images)) for key, value in listed.items()}
        if flavour == "lpqld":
            missing = [number for _, number in batches.values() if str(number) not in rows]
            if missing:
                raise Refused(f"lists no indices of batch {missing[0]}")
            return {file: rows[str(number)] for file, (_, number) in batches.items()}
        order: dict[Path, NDArray[np.int64]] = {}
        size: dict[int, int] = {}
        for file, (epoch, number) in batches.items():
            if str(epoch) not in rows:
                raise Refused(f"lists no indices of epoch {epoch}")
            # all batches of an epoch but the last have the size of the first
            if epoch not in size:
                with named(file):
                    size[epoch] = len(read_batch(file).shares)
            order[file] = rows[str(epoch)][number * size[epoch] : (number + 1) * size[epoch]]
        return order


def _indices(value: Value, count: int) -> NDArray[np.int64]:
    if not isinstance(value, list) or not all(type(index) is int for index in value):
        raise Refused("lists indices that are no whole numbers")
    if value and not (min(value) >= 0 and max(value) < count):
        raise Refused(f"names image {max(value)}, and the folder has {count}")
    return np.array(value, np.int64)


def sampled_order(
    batches: Mapping[Path, tuple[int, int]], images: ImageSource, stated: Stated, size: int
) -> tuple[dict[Path, NDArray[np.int64]], int]:
    """Image rows of every batch by the sampler's seed, and how many permutations it drew per epoch."""
    size = stated.batch_size or size
    epochs = 1 + max(epoch for epoch, _ in batches.values())
    if epochs > MAX_EPOCHS:
        raise RejectedInput(
            f"{next(iter(batches))}: epoch {epochs - 1}, up to {MAX_EPOCHS} are read"
        )
    scores: dict[int, float] = {}
    orders: dict[int, dict[Path, NDArray[np.int64]]] = {}
    for draws in PERMUTATIONS_PER_EPOCH:
        drawn = permutations(len(images), epochs, stated.sampler_seed, draws)
        orders[draws] = {
            path: drawn[epoch][number * size : (number + 1) * size]
            for path, (epoch, number) in batches.items()
        }
        scores[draws] = _truth(orders[draws], images)
    best = max(scores, key=lambda draws: (scores[draws], draws))
    return orders[best], best


def permutations(count: int, epochs: int, seed: int, draws: int) -> list[NDArray[np.int64]]:
    """What `torch.randperm(count, generator=manual_seed(seed))` gives at every `draws`-th call, without torch.

    A Mersenne Twister, seeded as in 2002; entry i is exchanged with entry i + (a 32-bit word mod count - i).
    """
    twister = np.random.MT19937()
    seeded = np.random.RandomState(seed & 0xFFFF_FFFF)
    twister.state = cast("Any", seeded.get_state(legacy=False))
    left = np.arange(count, 1, -1)
    orders = []
    for _ in range(epochs):
        steps = (twister.random_raw(count - 1).astype(np.int64) % left).tolist()
        order = list(range(count))
        for i, step in enumerate(steps):
            order[i], order[i + step] = order[i + step], order[i]
        orders.append(np.array(order, np.int64))
        twister.random_raw((draws - 1) * (count - 1))
    return orders


def _truth(order: Mapping[Path, NDArray[np.int64]], images: ImageSource) -> float:
    """Mean probability of the images' classes in the last few batches, under one order."""
    found = []
    for path in list(order)[-4:]:
        try:
            with named(path):
                batch = read_batch(path)
                rows = order[path]
                if len(rows) == len(batch.values) and batch.values.shape[1] == len(images.classes):
                    probs = softmax(finite(batch.values, "outputs"), 1.0)
                    found.append(probs[np.arange(len(rows)), images.class_ids[rows]].mean())
        except RejectedInput:
            continue  # named when it is read
    return float(np.mean(found)) if found else 0.0
