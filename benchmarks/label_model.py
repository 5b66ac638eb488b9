"""What a teacher says about random crops, as a model: labels for size and speed benchmarks at any scale.

Label model "reference/2". Each image has a pool of classes that are easily confused with its own, of which its
crops name the near ones often and the far ones seldom (28 to 130 distinct classes in 200 crops at K=5). A crop's
largest probability follows FerKD Table 1; the other kept classes and the tail share the rest by gamma draws. Boxes
are RandomResizedCrop's (scale 0.08 to 1, ratio 3/4 to 4/3) on ImageNet's usual sizes.

Every label is one that a softmax can have. In "reference/1" 6 % were not: their tail was more than C - K times the
smallest kept probability.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NAME = "reference/2"

BIN_EDGES = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0])
"""FerKD Table 1's bins of the largest probability."""
BIN_PERCENT = np.array([0.43, 0.89, 1.29, 2.03, 3.66, 4.35, 5.04, 7.76, 8.14, 28.73, 37.34, 0.33])
"""Share of crops in each bin, FerKD Table 1."""
IMAGE_SIZES = np.array(
    [
        (375, 500),
        (333, 500),
        (500, 375),
        (500, 333),
        (400, 500),
        (480, 640),
        (300, 400),
        (500, 500),
    ],
    "u2",
)
"""Height and width."""
POOL = 256


@dataclass(frozen=True, kw_only=True)
class ModelLabels:
    """Labels and crops of n images, m crops each."""

    class_ids: NDArray[np.unsignedinteger]
    """(n, m, K) uint16, or uint32 above 65,534 classes."""
    probs: NDArray[np.float32]
    """(n, m, K), sorted descending."""
    tail: NDArray[np.float32]
    """(n, m): what the K kept classes leave."""
    box: NDArray[np.uint16]
    """(n, m, 4): top, left, height, width in pixels."""
    flip: NDArray[np.bool_]
    """(n, m)"""
    size: NDArray[np.uint16]
    """(n, 2): height, width of the image."""
    ground_truth: NDArray[np.int64]
    """(n,)"""


def labels(
    first_image: int,
    num_images: int,
    num_crops: int,
    *,
    k: int = 5,
    num_classes: int = 1000,
    seed: int = 0,
) -> ModelLabels:
    """Labels of images [first_image, first_image + num_images).

    A call is one block of random numbers: the same blocks give the same labels, in whatever order they are made.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, first_image]))
    ground_truth = rng.integers(0, num_classes, num_images)
    class_ids = _class_ids(rng, ground_truth, num_crops, k, num_classes)
    probs, tail = _probs(rng, num_images, num_crops, k, num_classes)
    size = IMAGE_SIZES[rng.integers(0, len(IMAGE_SIZES), num_images)]
    box = _boxes(rng, size, num_crops)
    return ModelLabels(
        class_ids=class_ids.astype("u2" if num_classes <= 65_534 else "u4"),
        probs=probs,
        tail=tail,
        box=box,
        flip=rng.random((num_images, num_crops)) < 0.5,
        size=size,
        ground_truth=ground_truth,
    )


def parts(num_images: int, num_crops: int, part: int = 1024) -> Iterator[tuple[range, ModelLabels]]:
    """Images [0, num_images) in parts of at most `part`, each a call of `labels`."""
    for first in range(0, num_images, part):
        rows = range(first, min(first + part, num_images))
        yield rows, labels(first, len(rows), num_crops)


def _class_ids(
    rng: np.random.Generator,
    ground_truth: NDArray[np.int64],
    num_crops: int,
    k: int,
    num_classes: int,
) -> NDArray[np.int64]:
    """(n, m, K) distinct draws from each image's pool, near classes first."""
    n = len(ground_truth)
    # a stride that is coprime to C walks through all classes before it names one twice
    coprime = np.flatnonzero(np.gcd(np.arange(num_classes), num_classes) == 1)
    stride = rng.choice(coprime, n)
    pool = (ground_truth[:, None] + stride[:, None] * np.arange(POOL) % num_classes) % num_classes
    reach = rng.uniform(0.08, 0.35, n)[
        :, None, None
    ]  # small: this image's crops look far down its pool
    steps = rng.geometric(np.broadcast_to(reach, (n, num_crops, k))).astype(np.int32)
    position = np.cumsum(steps, -1) - 1
    right = (
        rng.random((n, num_crops)) < 0.9
    )  # crops that the teacher gives to the image's own class
    position[right] -= position[right][:, :1]
    position %= min(POOL, num_classes)
    return np.take_along_axis(np.broadcast_to(pool[:, None, :], (n, num_crops, POOL)), position, -1)


def _probs(
    rng: np.random.Generator, num_images: int, num_crops: int, k: int, num_classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(n, m, K) sorted descending and the tail (n, m)."""
    shape = (num_images, num_crops)
    drawn = rng.choice(len(BIN_PERCENT), p=BIN_PERCENT / BIN_PERCENT.sum(), size=shape)
    low, high = BIN_EDGES[drawn], BIN_EDGES[drawn + 1]
    largest = (low + rng.random(shape) * (high - low)).clip(max(0.02, 1.1 / num_classes), 0.999999)
    shares = rng.gamma(0.5, 1.0, (*shape, k)) + 1e-6  # of the K - 1 others, and of the tail
    shares[..., -1] *= 0.6
    shares *= ((1 - largest) / shares.sum(-1))[..., None]
    # no class may pass the largest: what is cut off goes to the tail
    others = np.minimum(-np.sort(-shares[..., :-1], -1), largest[..., None] * 0.98)
    if num_classes > k:
        # nor may any class of the tail pass the K-th
        beyond = np.maximum(1 - largest - others.sum(-1), 0)
        others = np.maximum(others, 1.02 / (num_classes - k) * beyond[..., None])
    probs = -np.sort(-np.concatenate([largest[..., None], others], -1), -1)
    # of few classes, those that were raised may now have more than there is
    total = probs.sum(-1, keepdims=True)
    probs /= np.maximum(total, 1) if num_classes > k else total
    return probs.astype(np.float32), np.maximum(1 - probs.sum(-1), 0).astype(np.float32)


def _boxes(
    rng: np.random.Generator, size: NDArray[np.uint16], num_crops: int
) -> NDArray[np.uint16]:
    """(n, m, 4): top, left, height, width."""
    shape = (len(size), num_crops)
    height, width = size[:, :1].astype(float), size[:, 1:].astype(float)
    area = height * width * rng.uniform(0.08, 1, shape)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), shape))
    box_width = np.minimum(np.rint(np.sqrt(area * ratio)), width)
    box_height = np.minimum(np.rint(np.sqrt(area / ratio)), height)
    top = np.floor(rng.random(shape) * (height - box_height + 1))
    left = np.floor(rng.random(shape) * (width - box_width + 1))
    return np.stack([top, left, box_height, box_width], -1).astype("u2")
