"""Augments crops for the student alone, beside stored crops: colour jitter, grey, blur, RandAugment, lighting, erasing.

Labels stay those of the plain crop. Every choice is drawn from a generator keyed by (seed, image, position of
the crop in the run), so that threads, ranks, batch size and resuming change nothing. timm and torchvision draw
theirs from global generators, which threads would share: here only the drawing is ours, the operations on
pixels are theirs, or Pillow's. They come in the order above: colours as torchvision's ColorJitter, grey and blur as
MoCo v2's, RandAugment (Cubuk et al. 2020) as timm's "rand-m9-mstd0.5-inc1", lighting as Krizhevsky et al. (2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
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
PRINCIPAL_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045])
"""Standard deviations of ImageNet's RGB pixels in [0, 1] along their principal colours (fb.resnet.torch, ReLabel)."""
PRINCIPAL_COLOURS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
"""(RGB, component), a column per principal colour."""
ERASED_RATIO = 0.3
"""Smallest width over height of an erased box; the largest is its inverse (timm)."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Changes uint8 crops (m, 3, S, S) of one image in place; called by the loader's threads."""

    seed: int
    color_jitter: tuple[float, float, float, float]
    color_jitter_prob: float
    grayscale_prob: float
    blur_prob: float
    blur_sigma: tuple[float, float]
    lighting: float
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
            if self._changes_pictures:
                picture = Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy())
                if _happens(rng, self.color_jitter_prob):
                    picture = color_jitter(picture, rng, self.color_jitter)
                if _happens(rng, self.grayscale_prob):
                    picture = picture.convert("L").convert("RGB")
                if _happens(rng, self.blur_prob):
                    radius = rng.uniform(*self.blur_sigma)
                    picture = picture.filter(ImageFilter.GaussianBlur(radius))
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
            if self.lighting:
                light(crop, rng, self.lighting)
            if rng.random() < self.erasing_prob:
                erase(crop, rng, self.mean, self.std)

    @property
    def _changes_pictures(self) -> bool:
        strengths = (*self.color_jitter, self.grayscale_prob, self.blur_prob, self.magnitude)
        return any(strengths)


def augmentation_of(config: TrainConfig) -> Augmentation | None:
    """The augmentation that a config asks for; None for none."""
    strengths = (
        *config.color_jitter,
        config.grayscale_prob,
        config.blur_prob,
        config.rand_augment,
        config.lighting,
        config.erasing_prob,
    )
    if not any(strengths):
        return None
    return Augmentation(
        seed=config.seed,
        color_jitter=config.color_jitter,
        color_jitter_prob=config.color_jitter_prob,
        grayscale_prob=config.grayscale_prob,
        blur_prob=config.blur_prob,
        blur_sigma=config.blur_sigma,
        lighting=config.lighting,
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


def light(crop: Tensor, rng: np.random.Generator, deviation: float) -> None:
    """Add one colour to all of a uint8 crop, in place: normal along each principal colour of ImageNet, rounded.

    A crop's colour has the deviation `deviation` * `PRINCIPAL_DEVIATIONS` along `PRINCIPAL_COLOURS`, of pixels in
    [0, 1] (Krizhevsky et al. 2012, 4.1).
    """
    strengths = rng.normal(0, deviation, 3) * PRINCIPAL_DEVIATIONS
    colour: NDArray[np.float32] = (255 * PRINCIPAL_COLOURS @ strengths).astype(np.float32)
    changed = crop + torch.from_numpy(colour).view(3, 1, 1)
    crop.copy_(changed.round_().clamp_(0, 255))


def _happens(rng: np.random.Generator, prob: float) -> bool:
    """With that probability; what is certain draws nothing, so that runs from before a setting go on as they began."""
    return prob >= 1 or (prob > 0 and rng.random() < prob)


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
