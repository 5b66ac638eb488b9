"""Colour jitter and RandAugment on uint8 crops: which operation is which function of Pillow, timm or torchvision.

What is done to a crop is decided elsewhere: by a plan (`crop_augmentation`), or by the trainer for the student alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from PIL.Image import Image as Picture

from labelstore.cropping.crop_augmentation import COLOURS, FILL, OPERATIONS, Operations

Arguments: TypeAlias = Callable[[float, int], tuple[float, ...]]
"""Level within 0 and 1, sign -1 or 1 -> arguments of timm's function of that name."""


def _nothing(level: float, sign: int) -> tuple[float, ...]:
    return ()


def _up_to(largest: float) -> Arguments:
    return lambda level, sign: (sign * level * largest,)


def _enhance(level: float, sign: int) -> tuple[float, ...]:
    # away from 1, which changes nothing
    return (max(0.1, 1 + sign * 0.9 * level),)


_ARGUMENTS: tuple[Arguments, ...] = (
    _nothing,
    _nothing,
    _nothing,
    _up_to(30.0),
    # at the highest level timm would keep no bit, which Pillow refuses
    lambda level, sign: (max(1, 4 - int(4 * level)),),
    lambda level, sign: (256 - int(256 * level),),
    lambda level, sign: (int(110 * level),),
    _enhance,
    _enhance,
    _enhance,
    _enhance,
    _up_to(0.3),
    _up_to(0.3),
    _up_to(0.45),
    _up_to(0.45),
)
ARGUMENTS: dict[str, Arguments] = dict(zip(OPERATIONS, _ARGUMENTS, strict=True))
"""timm's name of an operation -> its arguments: severities grow with the level."""


def operate(
    picture: Picture,
    name: str,
    level: float,
    sign: int,
    *,
    bicubic: bool,
    fill: tuple[int, ...] = FILL,
) -> Picture:
    """One operation of RandAugment; uncovered pixels get the colour `fill`."""
    # 2 s to import, and only augmented crops need it
    from timm.data.auto_augment import NAME_TO_OP

    apply = cast("Callable[..., Picture]", NAME_TO_OP[name])
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    return apply(picture, *ARGUMENTS[name](level, sign), resample=resample, fillcolor=fill)


def change_colour(picture: Picture, which: int, value: float) -> Picture:
    """Brightness, contrast, saturation times `value`, or hue turned by it."""
    from torchvision.transforms.v2 import functional as tv

    functions: tuple[Callable[[Picture, float], Picture], ...] = (
        tv.adjust_brightness,
        tv.adjust_contrast,
        tv.adjust_saturation,
        tv.adjust_hue,
    )
    return functions[which](picture, value)


def apply_operations(crop: torch.Tensor, operations: Operations) -> None:
    """Change one uint8 crop (3, S, S) in place."""
    picture = Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy())
    for name, value, sign, bicubic in operations:
        if name in COLOURS:
            picture = change_colour(picture, COLOURS.index(name), value)
        else:
            picture = operate(picture, name, value, sign, bicubic=bicubic)
    crop.copy_(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
