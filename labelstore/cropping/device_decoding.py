"""JPEGs decoded on a device (`decode_device`): for a CPU that cannot decode as fast as a network looks.

Decoders differ in how they enlarge chroma that is stored at half size: libjpeg-turbo, which all other pixels here come
from, interpolates it; nvJPEG as torchcodec and torchvision call it repeats it, which moves a sixth of the values of a
photograph with 4:2:0 chroma by more than 1 of 255. So a decoder is measured before it is used, on JPEGs of the images
at hand, by kind (`jpeg_kind`), and decodes those kinds alone whose crops are as close to `replay`'s as crops on the
device are. Everything else is decoded by the CPU: other kinds, progressive JPEGs, CMYK, PNG, whatever a decoder
refuses.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from labelstore.cropping.crop_plan import CropPlan
from labelstore.cropping.replay import decode, replay_many
from labelstore.devices import resized
from labelstore.errors import RejectedInput, StorageError, UsageError
from labelstore.images import ImageSource, jpeg_frame, sniff

Decoder = Callable[[Sequence[bytes], torch.device], "list[Tensor | None]"]
"""Encoded JPEGs to uint8 (3, H, W) on a device; None for one that it cannot decode."""

MOST_PIXELS = 1 << 25
"""Of an image that a device decodes: a batch of larger ones could fill its memory."""
MOST_TOGETHER = 64
"""JPEGs that a decoder is given at once."""
SAMPLE_IMAGES, SAMPLE_CROPS = 32, 4
"""What a decoder is measured on."""
MOST_BEYOND_ONE, LARGEST = 0.001, 4
"""Share of the values of crops that may differ by more than 1 of 255 from `replay`'s, and by how much at most."""
CHROMA = {
    b"\x11\x11\x11": "4:4:4", b"\x21\x11\x11": "4:2:2", b"\x22\x11\x11": "4:2:0", b"\x12\x11\x11": "4:4:0",
    b"\x41\x11\x11": "4:1:1",
}  # fmt: skip
"""Sampling factors of a JPEG's components as people call them."""
ADOBE = b"\xff\xee\x00\x0eAdobe"
"""Begins the segment in which Adobe's programs say what the components are."""
HEADER_BYTES = 1 << 16
"""In which that segment is looked for."""


def jpeg_kind(data: bytes) -> str | None:
    """Read how a JPEG's colours are made: "grey", "4:4:4", "4:2:0", ...; None for what a device is not given.

    That is all but whole, baseline JPEGs of 8 bits in grey or YCbCr.
    """
    frame = jpeg_frame(data) if sniff(data) == "jpeg" else None
    # without its end it is cut off: whether that is still an image is for the CPU's decoder to say
    if frame is None or not frame.is_baseline or frame.bits != 8 or not data.endswith(b"\xff\xd9"):
        return None
    if not 0 < frame.height * frame.width <= MOST_PIXELS:
        return None
    # a transform of 0: the components are red, green and blue
    adobe = data.find(ADOBE, 0, HEADER_BYTES)
    is_rgb = frame.ids == b"RGB" or (adobe >= 0 and data[adobe + len(ADOBE) + 6] == 0)
    if frame.components == 1:
        return "grey"
    return None if is_rgb else CHROMA.get(frame.sampling)


def with_torchcodec(images: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
    """By nvJPEG on cuda, by libjpeg-turbo on the CPU."""
    # imported by its name, as it is optional
    decoded = import_module("torchcodec.decoders").decode_jpeg(
        list(images), mode="RGB", device=device
    )
    return [*decoded]


def with_torchvision(images: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
    """The same, where torchcodec is not installed: from 0.29 on torchvision warns that it will decode no more."""
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]
    return [*decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)]


class WithNvImageCodec:
    """By nvJPEG with interpolated chroma, where the package nvidia-nvimgcodec is installed."""

    def __init__(self) -> None:
        self._codec = import_module("nvidia.nvimgcodec")
        self._decoders: dict[torch.device, Any] = {}

    def __call__(self, images: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
        """As a `Decoder`."""
        codec = self._codec
        if device not in self._decoders:
            number: int | None = device.index  # of "cuda" alone: None
            number = torch.cuda.current_device() if number is None else number
            self._decoders[device] = codec.Decoder(device_id=number, options=":fancy_upsampling=1")
        rgb = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
        stream = torch.cuda.current_stream(device).cuda_stream
        decoded = self._decoders[device].decode(list(images), params=rgb, cuda_stream=stream)
        return [None if each is None else from_dlpack(each).permute(2, 0, 1) for each in decoded]


def decoders_for(device: torch.device) -> dict[str, Decoder]:
    """Decoders that there are for a device, by name, the one to prefer first; empty where there is none."""
    decoders: dict[str, Decoder] = {}
    if device.type == "cuda":
        with suppress(ImportError):
            decoders["nvimgcodec"] = WithNvImageCodec()
    if device.type in ("cuda", "cpu"):
        # one that was built for another torch does not load, an early one decodes video alone
        try:
            usable = hasattr(import_module("torchcodec.decoders"), "decode_jpeg")
        except (ImportError, OSError, RuntimeError):
            usable = False
        if not usable:
            warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
            decoders["torchvision"] = with_torchvision
        else:
            decoders["torchcodec"] = with_torchcodec
    return decoders


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far crops of images that a device decoded are from those of `replay`, of 255."""

    images: int
    largest: int
    beyond_one: float
    """Share of the values that differ by more than 1."""

    @property
    def is_small(self) -> bool:
        """Whether such images may be decoded there."""
        return self.beyond_one <= MOST_BEYOND_ONE and self.largest <= LARGEST

    def __str__(self) -> str:
        return f"{self.beyond_one:.2%} of the values differ by more than 1 of 255, the largest by {self.largest}"


def measured(
    decoder: Decoder,
    sample: Mapping[str, bytes],
    device: torch.device,
    *,
    size: int,
    interpolation: str,
) -> dict[str, Gap]:
    """The gap of each kind of JPEG in a sample (image key -> encoded bytes), the worst of its images; crops of
    `size`. Images that have no kind, or that either side cannot decode, are left out."""
    differences: dict[str, list[tuple[int, float]]] = {}
    for key, data in sample.items():
        kind = jpeg_kind(data)
        if kind is None:
            continue
        try:
            right = decode(data, key)
        except RejectedInput:
            continue
        (image,) = _decoded(decoder, [data], device)
        if image is None:
            continue
        if image.shape != right.shape:
            differences.setdefault(kind, []).append((255, 1.0))
            continue
        height, width = right.shape[1:]
        boxes, flips = CropPlan().crops(key, height, width, np.arange(SAMPLE_CROPS))
        shape = (SAMPLE_CROPS, 3, size, size)
        wanted = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        made = torch.empty(shape, dtype=torch.uint8, device=device)
        replay_many(right, boxes, flips, size, interpolation, wanted)
        crops_on_device(image, boxes, flips, interpolation, made)
        gap = (made.cpu().int() - wanted.int()).abs()
        differences.setdefault(kind, []).append((int(gap.max()), float((gap > 1).float().mean())))
    return {
        kind: Gap(
            images=len(gaps),
            largest=max(largest for largest, _ in gaps),
            beyond_one=max(share for _, share in gaps),
        )
        for kind, gaps in differences.items()
    }


def sample_of(images: ImageSource, keys: Sequence[str]) -> dict[str, bytes]:
    """Encoded bytes of a few of these images by key, from the first to the last; what cannot be read is left out."""
    count = min(SAMPLE_IMAGES, len(keys))
    sample = {}
    for key in (keys[number * (len(keys) - 1) // max(count - 1, 1)] for number in range(count)):
        # who labels or trains on it says so
        with suppress(OSError, StorageError, RejectedInput):
            sample[key] = images.file(key).read_bytes()
    return sample


@dataclass(eq=False)
class _Asked:
    """One JPEG that a thread waits for."""

    data: bytes
    image: Tensor | None = None
    is_done: bool = False


class DeviceDecoding:
    """`replay.decode` on a device, for the kinds of JPEG that it was measured on; can be called by many threads.

    What threads ask for while the device is at work goes there together afterwards: the thread that is first gives it
    all to the decoder, and the others find theirs done.
    """

    def __init__(self, decoder: Decoder, device: torch.device, kinds: Sequence[str]) -> None:
        self.device, self.kinds = device, frozenset(kinds)
        self.counts: Counter[str] = Counter()
        """Images decoded, by "device" and "cpu"."""
        self._decoder = decoder
        self._waiting: deque[_Asked] = deque()
        self._turn = threading.Lock()

    def __call__(self, data: bytes, name: str) -> Tensor:
        """Pixels uint8 (3, H, W) on the device; RejectedInput as `replay.decode` raises it."""
        image = None
        if jpeg_kind(data) in self.kinds:
            asked = _Asked(data)
            self._waiting.append(asked)
            with self._turn:
                while not asked.is_done:
                    self._decode_waiting()
            image = asked.image
        self.counts["cpu" if image is None else "device"] += 1
        return decode(data, name).to(self.device) if image is None else image

    def _decode_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TOGETHER))]
        try:
            decoded = _decoded(self._decoder, [asked.data for asked in batch], self.device)
        finally:
            for asked in batch:
                asked.is_done = True
        for asked, image in zip(batch, decoded, strict=True):
            asked.image = image


def _decoded(
    decoder: Decoder, images: Sequence[bytes], device: torch.device
) -> list[Tensor | None]:
    """Decode images; one that the decoder refuses leaves the others as they are."""
    try:
        return decoder(images, device)
    except RuntimeError:
        # of a device that is broken, the copy from the CPU will say so
        if len(images) == 1:
            return [None]
        return [each for data in images for each in _decoded(decoder, [data], device)]


def device_decoding(
    device: torch.device,
    sample: Mapping[str, bytes],
    *,
    size: int,
    interpolation: str,
    note: Callable[[str], None],
) -> DeviceDecoding:
    """The decoder of a device that is closest to the CPU's on a sample, and `note` of what it is not used for.

    UsageError where there is none, or none of the kinds of JPEG in the sample may be decoded by it, with the figures.
    """
    if interpolation not in DEVICE_INTERPOLATIONS:
        raise UsageError(
            f"`decode_device=device` with `interpolation={interpolation}`: a device resizes by "
            f"{' or '.join(DEVICE_INTERPOLATIONS)} alone, use `decode_device=cpu`"
        )
    decoders = decoders_for(device)
    if not decoders:
        raise UsageError(
            f"`decode_device=device` on {device.type}: JPEGs are decoded on cuda and cpu alone, use `decode_device=cpu`"
        )
    best, best_name, gaps = None, "", dict[str, Gap]()
    for name, decoder in decoders.items():
        differences = measured(decoder, sample, device, size=size, interpolation=interpolation)
        if best is None or _num_small(differences) > _num_small(gaps):
            best, best_name, gaps = decoder, name, differences
    assert best is not None
    taken = [kind for kind, gap in gaps.items() if gap.is_small]
    others = "; ".join(f"{kind}: {gap}" for kind, gap in gaps.items() if not gap.is_small)
    if not taken:
        raise UsageError(
            f"`decode_device=device`: of {len(sample)} images looked at, {best_name} on {device} decodes none as the "
            f"CPU does ({others or 'there is no baseline JPEG'}; {MOST_BEYOND_ONE:.1%} and {LARGEST} are allowed): use "
            "`decode_device=cpu`"
        )
    few = sum(jpeg_kind(data) not in taken for data in sample.values())
    if few:
        because = f" ({others})" if others else ""
        note(
            f"{best_name} on {device} decodes JPEGs with {', '.join(sorted(taken))} chroma; {few} of {len(sample)} "
            f"images looked at are decoded by the CPU{because}"
        )
    return DeviceDecoding(best, device, taken)


def _num_small(gaps: Mapping[str, Gap]) -> int:
    return sum(gap.images for gap in gaps.values() if gap.is_small)


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
