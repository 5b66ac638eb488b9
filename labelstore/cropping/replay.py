"""Pixels: decode an image and replay its crops. The only code that makes crop pixels, for teacher and student alike.

A crop is cut out, resized with antialiasing on uint8, flipped, then augmented where its plan says so. Bilinear and
bicubic are Pillow's filters with coarser weights: values differ by more than 1/255 from Pillow's in 1 of 100,000
(bilinear), and for bicubic in 3 of 10,000 of pure noise and 3 of 100,000 of a photograph (`tests/replay`). Other
interpolations are Pillow's own.

All heavy parts release the GIL: call from as many threads as there are cores, with `torch.set_num_threads(1)`.
Images and crops are uint8 RGB tensors (3, H, W); whatever is made here lies in channels-last memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from labelstore.cropping.crop_augmentation import Operations
from labelstore.cropping.pictures import decode_rgb
from labelstore.cropping.pixel_operations import apply_operations
from labelstore.errors import RejectedInput, StorageError, UsageError
from labelstore.images import ImageFile

PILLOW_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "nearest": Image.Resampling.NEAREST,
}
# `F.interpolate` calls the same kernels, but cannot write into a given tensor nor keep channels-last
# memory, and repacking costs half as much as the resize
TORCH_KERNELS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
INTERPOLATIONS = (*TORCH_KERNELS, *PILLOW_FILTERS)
"""Names that `interpolation` may have."""

CROP_MODES = ("center", "squash", "border")
"""Names that `crop_mode` may have, as in timm."""
MAX_CROP_PCT = 2.0
"""Above 1 the resized image is smaller than the crop: timm has networks with 1.15."""

BATCHES_AHEAD = 2
"""Batches of centre crops that threads decode while a network sees one."""
Box = Sequence[int] | NDArray[np.integer[Any]]


def read_image(path: ImageFile) -> torch.Tensor:
    """Pixels (3, H, W) of an image file; StorageError if it cannot be read, RejectedInput if not decoded."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    return decode(data, str(path))


def decode(data: bytes, name: str) -> torch.Tensor:
    """Pixels (3, H, W) of an encoded image, as torchvision's ImageFolder would load it: see `pictures.decode_rgb`.

    `name` is what the RejectedInput for an image that cannot be used calls it.
    """
    pixels = decode_rgb(data, name)
    # Pillow's own memory is read-only
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)


def replay(
    image: torch.Tensor,
    box: Box,
    flip: bool,
    size: int,
    interpolation: str = "bilinear",
    out: torch.Tensor | None = None,
    operations: Operations = (),
) -> torch.Tensor:
    """Pixels (3, size, size) of one crop of an image (3, H, W); `box` is top, left, height, width in pixels.

    `operations` are what a plan records beyond box and flip, in order.
    Written into `out` if given: fastest where it is channels-last memory, e.g. one image of
    `torch.empty(B, 3, size, size, dtype=torch.uint8, memory_format=torch.channels_last)`.
    Raises RejectedInput where the box leaves the image, UsageError for an unknown interpolation.
    """
    top, left, height, width = (int(edge) for edge in box)
    _check_box(top, left, height, width, image.shape[1], image.shape[2])
    target = _channels_last(size, size) if out is None else out
    if target.shape != (3, size, size) or target.dtype != torch.uint8:
        raise UsageError(
            f"out is {target.dtype} {tuple(target.shape)}, needed is uint8 (3, {size}, {size})"
        )
    rows_columns = image.permute(1, 2, 0).numpy()
    crop = np.ascontiguousarray(rows_columns[top : top + height, left : left + width])
    resized = target if target.stride(0) == 1 else _channels_last(size, size)
    _resize(crop, resized, interpolation)
    if flip:
        # a new tensor, so that the mirrored pixels may go where the others lie
        resized = resized.flip(2)
    if operations:
        apply_operations(resized, operations)
    return resized if resized is target else target.copy_(resized)


def replay_many(
    image: torch.Tensor,
    boxes: NDArray[np.integer[Any]],
    flips: NDArray[np.bool_],
    size: int,
    interpolation: str,
    out: torch.Tensor,
    operations: Sequence[Operations] | None = None,
) -> None:
    """Write m crops of an image (3, H, W) into `out`, uint8 (m, 3, size, size); boxes (m, 4), flips (m,).

    `operations` (m) where the plan records any.
    """
    if not len(boxes) == len(flips) == len(out):
        raise UsageError(f"{len(boxes)} boxes, {len(flips)} flips, room for {len(out)} crops")
    kernel = TORCH_KERNELS.get(interpolation)
    plain = out.dtype == torch.uint8 and out.shape[1:] == (3, size, size) and out.stride(1) == 1
    if kernel is not None and operations is None and plain:
        _replay_plain(image, boxes.tolist(), flips.tolist(), kernel, out)
        return
    each = [()] * len(out) if operations is None else operations
    for box, flip, target, todo in zip(boxes.tolist(), flips.tolist(), out, each, strict=True):
        replay(image, box, flip, size, interpolation, target, todo)


def _replay_plain(
    image: torch.Tensor,
    boxes: list[list[int]],
    flips: list[bool],
    kernel: Callable[..., torch.Tensor],
    out: torch.Tensor,
) -> None:
    """`replay` of each crop into channels-last memory, with little around it.

    After a resize nothing is in a cache any more, so that a call of NumPy or torch costs several times what it
    does alone.
    """
    rows_columns = image.permute(1, 2, 0).numpy()
    image_height, image_width, _ = rows_columns.shape
    side = out.shape[2:]
    for nth, (top, left, height, width) in enumerate(boxes):
        _check_box(top, left, height, width, image_height, image_width)
        crop = np.ascontiguousarray(rows_columns[top : top + height, left : left + width])
        target = out[nth : nth + 1]
        source = torch.from_numpy(crop[None]).permute(0, 3, 1, 2)
        kernel(source, side, False, None, None, out=target)
        if flips[nth]:
            target.copy_(target.flip(3))


def _check_box(
    top: int, left: int, height: int, width: int, image_height: int, image_width: int
) -> None:
    if not (0 <= top < top + height <= image_height and 0 <= left < left + width <= image_width):
        raise RejectedInput(
            f"box (top {top}, left {left}, height {height}, width {width}) leaves an image of "
            f"{image_height} x {image_width} pixels: the crops belong to another copy of it"
        )


def mix_pixels(
    crop: torch.Tensor, partner: torch.Tensor, share: float, box: Sequence[int], side: int
) -> None:
    """Mix a partner into a uint8 crop (3, S, S) in place: paste a box of it, or blend where the box is empty.

    `box` is top, left, height, width in pixels of a crop of `side`, scaled to S with edges rounded; `share` is the
    crop's own, values are rounded to the nearest.
    """
    top, left, height, width = box
    if not height:
        crop.copy_(torch.lerp(partner.float(), crop.float(), share).round_())
        return
    edges = (top, left, top + height, left + width)
    top, left, bottom, right = (round(edge * crop.shape[-1] / side) for edge in edges)
    crop[:, top:bottom, left:right] = partner[:, top:bottom, left:right]


def centre_crop(
    image: torch.Tensor,
    size: int,
    crop_pct: float = 0.875,
    interpolation: str = "bilinear",
    *,
    crop_mode: str = "center",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
) -> torch.Tensor:
    """Pixels (3, size, size) for evaluation: the image resized by timm's `crop_mode`, then the middle of it.

    With s = floor(size / crop_pct), "center" resizes the shorter side to s, "border" the longer side, "squash" both.
    Where the result is smaller than `size` it is padded: with black, with "border" by `mean` (shares of 255 per
    channel). The same integers as timm's `transforms_imagenet_eval` and torchvision's Resize and CenterCrop.
    UsageError for values that are not allowed.
    """
    if not 0 < crop_pct <= MAX_CROP_PCT or size < 1:
        raise UsageError(
            f"size {size} and crop_pct {crop_pct}: give size >= 1 and 0 < crop_pct <= {MAX_CROP_PCT}"
        )
    if crop_mode not in CROP_MODES:
        raise UsageError(f"crop_mode {crop_mode!r} is not one of {', '.join(CROP_MODES)}")
    height, width = image.shape[1:]
    side = max(1, math.floor(size / crop_pct))
    new_height, new_width = _evaluation_size(height, width, side, crop_mode)
    resized = _channels_last(new_height, new_width)
    _resize(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), resized, interpolation)
    if new_height < size or new_width < size:
        fill = [round(255 * share) for share in mean] if crop_mode == "border" else [0, 0, 0]
        padded = _channels_last(max(size, new_height), max(size, new_width))
        padded.copy_(torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1))
        top, left = max(0, size - new_height) // 2, max(0, size - new_width) // 2
        padded[:, top : top + new_height, left : left + new_width] = resized
        resized = padded
    top, left = (round((side - size) / 2) for side in resized.shape[1:])
    return resized[:, top : top + size, left : left + size]


def _evaluation_size(height: int, width: int, side: int, crop_mode: str) -> tuple[int, int]:
    """Height and width that an image is resized to before its middle is cut out."""
    if crop_mode == "squash":
        return side, side
    if crop_mode == "border":
        # timm's ResizeKeepRatio; a side of an extreme image would round to nothing
        ratio = max(height / side, width / side)
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def centre_crops(
    paths: Sequence[ImageFile],
    size: int,
    crop_pct: float,
    interpolation: str,
    *,
    batch_size: int,
    workers: int,
    crop_mode: str = "center",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
) -> Generator[torch.Tensor, None, None]:
    """`centre_crop` of many files: uint8 (B, 3, size, size) in their order, decoded by threads a few batches ahead."""

    def load(path: ImageFile, out: torch.Tensor) -> None:
        image = read_image(path)
        out.copy_(centre_crop(image, size, crop_pct, interpolation, crop_mode=crop_mode, mean=mean))

    with ThreadPoolExecutor(workers, thread_name_prefix="centre-crops") as pool:
        waiting: deque[tuple[torch.Tensor, list[Future[None]]]] = deque()
        try:
            for start in range(0, len(paths), batch_size):
                group = paths[start : start + batch_size]
                pixels = torch.empty(len(group), 3, size, size, dtype=torch.uint8)
                jobs = [
                    pool.submit(load, path, out) for path, out in zip(group, pixels, strict=True)
                ]
                waiting.append((pixels, jobs))
                if len(waiting) > BATCHES_AHEAD:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:
            # after an error the images that wait are not needed
            pool.shutdown(wait=True, cancel_futures=True)


def _finished(pixels: torch.Tensor, jobs: Sequence[Future[None]]) -> torch.Tensor:
    for job in jobs:
        job.result()
    return pixels


def _channels_last(height: int, width: int) -> torch.Tensor:
    """Uninitialised uint8 (3, height, width) whose memory runs over rows, columns, channels."""
    return torch.empty((height, width, 3), dtype=torch.uint8).permute(2, 0, 1)


def _resize(crop: NDArray[np.uint8], target: torch.Tensor, interpolation: str) -> None:
    """Resize a contiguous (h, w, 3) crop into a channels-last `target` (3, H, W)."""
    kernel = TORCH_KERNELS.get(interpolation)
    if kernel is not None:
        source = torch.from_numpy(crop[None]).permute(0, 3, 1, 2)
        kernel(source, target.shape[1:], False, None, None, out=target[None])
        return
    if interpolation not in PILLOW_FILTERS:
        raise UsageError(
            f"interpolation {interpolation!r} is not one of {', '.join(INTERPOLATIONS)}"
        )
    size = (target.shape[2], target.shape[1])
    resized = Image.fromarray(crop).resize(size, PILLOW_FILTERS[interpolation])
    target.copy_(torch.from_numpy(np.array(resized)).permute(2, 0, 1))
