"""Scaled decoding of large photographs: what Pillow's DCT scaling to half size saves, and what it does to the pixels.

libjpeg can decode at half size for less than the whole, and a crop that is large enough loses little by it. Both sides
cut the same boxes of even numbers and resize them with `labelstore.cropping.replay`. Labels were made from pixels of whole
decoding; the promise that they are kept to is 1/255.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.generation import Spent, spent
from benchmarks.loader_data import LoaderData
from benchmarks.loader_pixels import SIZE, take_turns
from labelstore.cropping.replay import decode, replay

OVERSAMPLED = (2, 3, 4)
"""Sides of a crop over twice the side that the network sees."""


def measure(data: LoaderData, *, rounds: int, images: int) -> dict[str, Any]:
    """CPU time of decoding at half size over whole decoding, and pixel differences by size of the crop."""
    files = [(data.images.root / key).read_bytes() for key in data.keys[:images]]
    found = take_turns(
        {
            "whole": lambda number: decoded(files, half=False),
            "half": lambda number: decoded(files, half=True),
        },
        rounds,
        len(files),
    )
    return {
        "time_ratio": found.ratio("half", "whole"),
        "whole_ms_per_image": found.of("whole") / 1000,
        "half_ms_per_image": found.of("half") / 1000,
        "pixels": [differences(files, factor * SIZE) for factor in OVERSAMPLED],
    }


def decoded(files: list[bytes], *, half: bool) -> Spent:
    """All files once, by Pillow at half size or by our decoder in full."""

    def work() -> None:
        for data in files:
            half_size(data) if half else decode(data, "a photograph")

    return spent(work, len(files))


def half_size(data: bytes) -> torch.Tensor:
    """Pixels (3, H / 2, W / 2)."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (image.width // 2, image.height // 2))
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def differences(files: list[bytes], side: int, crops: int = 4) -> dict[str, float]:
    """Of square crops of a side: how far their pixels are from those of whole decoding, in 1/255."""
    rng = np.random.default_rng(side)
    found = []
    for data in files:
        whole, half = decode(data, "a photograph"), half_size(data)
        room = (np.array(whole.shape[1:]) - side) // 2 + 1
        for top, left in rng.integers(0, room, (crops, 2)).tolist():
            full = replay(whole, (2 * top, 2 * left, side, side), False, SIZE)
            scaled = replay(half, (top, left, side // 2, side // 2), False, SIZE)
            found.append((full.float() - scaled.float()).abs())
    values = torch.stack(found).flatten()
    rank = max(1, int(0.99 * len(values)))
    return {
        "side": side,
        "mean": float(values.mean()),
        "p99": float(values.kthvalue(rank).values),
        "largest": float(values.max()),
        "beyond_1": float((values > 1).float().mean()),
    }
