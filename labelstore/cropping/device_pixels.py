"""Crops made on a device: for a CPU that cannot resize as fast as a network looks.

Cutting, resizing with antialiasing and flipping happen on the device, in float32, rounded to uint8 after columns and
after rows. `replay` resizes in fixed point with the same order of steps: 1 % of a photograph's values differ by 1 of
255, a few in a million by 2 (`tests/generation/test_device_crops.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelstore.devices import resized
from labelstore.errors import RejectedInput

DEVICE_INTERPOLATIONS = ("bilinear", "bicubic")
"""Interpolations that torch has with antialiasing for floats."""


@torch.inference_mode()
def crops_on_device(
    image: torch.Tensor,
    boxes: NDArray[np.integer[Any]],
    flips: NDArray[np.bool_],
    interpolation: str,
    out: torch.Tensor,
) -> None:
    """Write m crops of a uint8 image (3, H, W) into `out`, uint8 (m, 3, S, S), both on one device; boxes (m, 4).

    RejectedInput where a box leaves the image.
    """
    size = (int(out.shape[-2]), int(out.shape[-1]))
    pixels = image.float()
    for (top, left, height, width), flip, target in zip(
        boxes.tolist(), flips.tolist(), out, strict=True
    ):
        if top + height > image.shape[1] or left + width > image.shape[2] or not height * width:
            raise RejectedInput(
                f"box (top {top}, left {left}, height {height}, width {width}) leaves an image of "
                f"{image.shape[1]} x {image.shape[2]} pixels: the crops belong to another copy of it"
            )
        crop = pixels[None, :, top : top + height, left : left + width]
        # columns, then rows, rounded in between, as `replay` does it: overshoot of a bicubic is cut twice
        narrow = _resized(crop, (height, size[1]), interpolation)
        whole = _resized(narrow, size, interpolation)
        target.copy_((whole.flip(3) if flip else whole)[0])


def _resized(pixels: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """Whole numbers 0 to 255, as float32."""
    return resized(pixels, size, interpolation).round_().clamp_(0, 255)
