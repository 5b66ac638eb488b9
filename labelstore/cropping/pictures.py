"""Encoded pictures to 8-bit RGB: how each mode becomes colours, and how large a picture may be. No torch.

JPEG is decoded by simplejpeg (libjpeg-turbo, as in Pillow: equal pixels); everything else, and a JPEG that simplejpeg
refuses, by Pillow, so that an image that torchvision's ImageFolder loads is not lost.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput
from labelstore.images import JpegFrame, jpeg_frame, open_picture, sniff

if TYPE_CHECKING:
    from PIL import Image

DECODE_JPEG: Callable[..., Any] | None = None
"""None where there is no simplejpeg for this machine: Pillow decodes, with equal pixels at 1.6 times the cost."""
with suppress(ImportError):
    import simplejpeg

    DECODE_JPEG = simplejpeg.decode_jpeg

MAX_DECODING_BYTES = 384_000_000
"""Memory that decoding one picture may take: beside torch (0.7 GB) a process stays within 1 GiB."""
BYTES_PER_PIXEL = {
    "baseline jpeg": 3,
    "progressive jpeg": 9,
    "jpeg": 12,
    "png": 7.5,
    "gif": 7.5,
    "tiff": 11,
    "webp": 16,
    "bmp": 10.5,
    "ppm": 10.5,
}
"""Peak of decoding, measured: Pillow's own copy has 4 bytes per pixel, a progressive JPEG keeps its coefficients."""
STRIP_PIXELS = 1 << 22
"""Pixels that are converted at once: a whole photograph, or a strip of a large picture."""

COLOURS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"})
"""Modes of 8 bits and fewer, which Pillow converts to RGB as ImageFolder does; transparency is dropped."""
WHAT_MODES_ARE = {"I": "integers of 32 bits, or with a sign", "F": "floating-point numbers"}


def decode_rgb(data: bytes, name: str) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of an encoded picture; of several in one file the first.

    Grey becomes RGB, 16-bit grey is divided by 257 and rounded, transparency is dropped, the EXIF orientation is
    ignored. RejectedInput, which calls the picture `name`, for one that is damaged, truncated, too large, of no
    format that is read here, or of numbers that have no colours (32-bit integers, floating point).
    """
    frame = jpeg_frame(data) if sniff(data) == "jpeg" else None
    if frame is not None and frame.components != 4 and DECODE_JPEG is not None:
        _check_pixels(frame.height, frame.width, _kind(frame), name)
        try:
            # strict: after any warning Pillow decides whether it is an image
            pixels: NDArray[np.uint8] = DECODE_JPEG(data, colorspace="RGB", strict=True)
            return pixels
        except ValueError:
            pass
    return _decode_with_pillow(data, name)


def to_rgb(picture: Image.Image, name: str) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of an opened picture, a strip at a time; RejectedInput for a mode without colours."""
    width, height = picture.size
    rows = max(1, STRIP_PIXELS // width)
    if rows >= height:
        return _strip_to_rgb(picture, picture, name)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = _strip_to_rgb(strip, picture, name)
    return pixels


def _strip_to_rgb(strip: Image.Image, picture: Image.Image, name: str) -> NDArray[np.uint8]:
    if strip.mode in COLOURS:
        # By way of RGBA, Pillow does not warn about transparent palettes; the colours are the same
        through = "transparency" in strip.info and strip.mode == "P"
        return np.asarray((strip.convert("RGBA") if through else strip).convert("RGB"))
    if not _has_16_bits(picture):
        what = WHAT_MODES_ARE.get(strip.mode, "values that are no 8-bit or 16-bit grey or colour")
        raise RejectedInput(
            f"{name} has pixels of Pillow's mode {strip.mode} ({what}): nothing says which of them is white; save it "
            "with 8 bits per channel, or leave it out"
        )
    grey = (np.asarray(strip).astype(np.uint32) + 128) // 257
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _has_16_bits(picture: Image.Image) -> bool:
    """Whether values run from 0, black, to 65,535, white."""
    if picture.mode.startswith("I;16"):
        # a TIFF may have 12 bits in 16, or white at 0
        tags = getattr(picture, "tag_v2", {})
        return bool(tags.get(258, (16,)) == (16,) and tags.get(262, 1) == 1)
    # what Pillow reads so has 16 bits in these formats, scaled to all of them
    return picture.mode == "I" and picture.format in ("PNG", "PPM")


def _kind(frame: JpegFrame) -> str:
    return "baseline jpeg" if frame.is_baseline else "progressive jpeg"


def _check_pixels(height: int, width: int, kind: str, name: str) -> None:
    most = int(MAX_DECODING_BYTES // BYTES_PER_PIXEL[kind])
    if height * width > most:
        raise RejectedInput(
            f"{name} has {width} x {height} pixels, a {kind} may have {most:,}: resize or remove it"
        )


def _decode_with_pillow(data: bytes, name: str) -> NDArray[np.uint8]:
    from PIL import UnidentifiedImageError

    try:
        with open_picture(data) as picture:
            _check_pixels(picture.height, picture.width, str(sniff(data)), name)
            return to_rgb(picture, name)
    except RejectedInput:
        raise
    except UnidentifiedImageError:
        # Pillow's own text names an object in memory
        raise RejectedInput(
            f"{name} cannot be decoded (no image by its first bytes): replace it, or leave it out"
        ) from None
    except Exception as error:  # noqa: BLE001
        # Pillow's decoders raise whatever they stumble over: struct.error, KeyError, SyntaxError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RejectedInput(
            f"{name} cannot be decoded ({reason}): replace it, or leave it out"
        ) from None
