"""What only the student sees: colour jitter, RandAugment and random erasing on top of stored crops.

Labels stay those of the plain crop. Every choice is drawn from a generator keyed by (seed, image, position of
the crop in the run), so that threads, ranks, batch size and resuming change nothing. timm and torchvision draw
theirs from global generators, which threads would share: here only the drawing is ours, the operations on
pixels are theirs. Colours first, then RandAugment (Cubuk et al. 2020; timm's "rand-m9-mstd0.5-inc1"), erasing last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from PIL.Image import Image as Picture
from torch import Tensor

from labelstore.cropping.crop_augmentation import COLOURS, MAX_MAGNITUDE, OPERATIONS
from labelstore.cropping.pixel_operations import change_colour, operate
from trainer.config import TrainConfig

OP_PROB = 0.5
"""Probability that a chosen operation of RandAugment is applied (timm)."""
ERASED_AREA = (0.02, 1 / 3)
"""Share of the crop that random erasing takes (timm)."""
HUE = COLOURS.index("hue")
ERASED_RATIO = 0.3
"""Smallest width over height of an erased box; the largest is its inverse (timm)."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Changes uint8 crops (m, 3, S, S) of one image in place; called by the loader's threads."""

    seed: int
    color_jitter: tuple[float, float, float, float]
    magnitude: float
    magnitude_std: float
    num_ops: int
    erasing_prob: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, crops: Tensor, stream: int, positions: range) -> None:
        """`stream` is the image's number, `positions` those of the crops in the run."""
        for crop, position in zip(crops, positions, strict=True):
            # the first word keeps it apart from whatever else is keyed by [seed, ...]
            rng = np.random.default_rng([0x617567, self.seed, stream, position])
            if any(self.color_jitter) or self.magnitude:
                picture = Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy())
                picture = color_jitter(picture, rng, self.color_jitter)
                if self.magnitude:
                    picture = rand_augment(
                        picture,
                        rng,
                        magnitude=self.magnitude,
                        std=self.magnitude_std,
                        num_ops=self.num_ops,
                        fill=tuple(round(255 * value) for value in self.mean),
                    )
                crop.copy_(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
            if rng.random() < self.erasing_prob:
                erase(crop, rng, self.mean, self.std)


def augmentation_of(config: TrainConfig) -> Augmentation | None:
    """The augmentation that a config asks for; None for none."""
    if not (any(config.color_jitter) or config.rand_augment or config.erasing_prob):
        return None
    return Augmentation(
        seed=config.seed,
        color_jitter=config.color_jitter,
        magnitude=config.rand_augment,
        magnitude_std=config.rand_augment_std,
        num_ops=config.rand_augment_ops,
        erasing_prob=config.erasing_prob,
        mean=config.mean,
        std=config.std,
    )


def color_jitter(
    picture: Picture, rng: np.random.Generator, strength: tuple[float, float, float, float]
) -> Picture:
    """Brightness, contrast, saturation and hue in random order, factors drawn as torchvision's ColorJitter does."""
    for nth in rng.permutation(4):
        by = rng.uniform(-strength[nth], strength[nth])
        if strength[nth]:
            picture = change_colour(picture, int(nth), by if nth == HUE else 1 + by)
    return picture


def rand_augment(
    picture: Picture,
    rng: np.random.Generator,
    *,
    magnitude: float,
    std: float,
    num_ops: int,
    fill: tuple[int, ...],
) -> Picture:
    """`num_ops` of `OPERATIONS`, each applied with probability `OP_PROB`; uncovered pixels get the colour `fill`."""
    for nth in rng.integers(0, len(OPERATIONS), num_ops):
        level = float(np.clip(rng.normal(magnitude, std), 0, MAX_MAGNITUDE)) / MAX_MAGNITUDE
        sign = 1 if rng.random() < 0.5 else -1
        bicubic = bool(rng.integers(2))
        if rng.random() < OP_PROB:
            picture = operate(picture, OPERATIONS[nth], level, sign, bicubic=bicubic, fill=fill)
    return picture


def erase(
    crop: Tensor,
    rng: np.random.Generator,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> None:
    """Random erasing (Zhong et al. 2020) of one box of a uint8 crop, in place, with normal noise.

    The noise has the data's mean and deviation; values beyond 0 to 255 are clipped.
    """
    height, width = crop.shape[-2:]
    area = rng.uniform(*ERASED_AREA) * height * width
    ratio = np.exp(rng.uniform(np.log(ERASED_RATIO), -np.log(ERASED_RATIO)))
    h = min(max(round(float(np.sqrt(area / ratio))), 1), height)
    w = min(max(round(float(np.sqrt(area * ratio))), 1), width)
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    noise = rng.standard_normal((3, h, w), np.float32)
    values = 255 * (noise * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1)))
    pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    crop[:, top : top + h, left : left + w] = torch.from_numpy(pixels)
