"""How labels are to be made, as it was asked for: what is wrong with it is said before anything is loaded.

Where the teacher's crops are made (`crop_device`, `decode_device`) is recorded with the label set, since
`device_pixels` and `replay` differ a little.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from labelstore.codecs.base import LabelCodec
from labelstore.cropping.device_decoding import DEVICE_INTERPOLATIONS
from labelstore.errors import UsageError
from labelstore.teachers.class_map import LabelClasses
from labelstore.teachers.labeller import Autocast, check_temperature


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of `generate`; None where nothing was said."""

    name: str | None = None
    """Name of the label set; the teacher's name if not given."""
    temperature: float = 1.0
    class_map: str | Path | None = None
    classes: LabelClasses | None = None
    """Whether labels have the data set's classes ("data"), all outputs of the teacher ("teacher"), or outputs are an
    embedding ("embedding")."""
    class_names: str | Path | None = None
    """Names of the teacher's outputs: a file of one name per line, or timm's name of a variant of ImageNet."""
    allow_lost_mass: bool = False
    """Take a class map that leaves out more than a quarter of the teacher's probability."""
    batch_size: int = 64
    device: str | None = None
    autocast: Autocast | None = None
    crop_device: CropDevice | None = None
    """Where crops are made; None is as the label set has it, else where images are decoded."""
    decode_device: DecodeDevice | None = None
    """Where images are decoded; None is as the label set has it, else cpu."""
    compile_teacher: bool = False
    workers: int | None = None
    """Threads that decode and crop."""
    skip_bad: bool = False
    max_seconds: float | None = None
    """Stop after so many, loading the teacher and checking the images included."""
    started: float = field(default_factory=time.monotonic, compare=False, repr=False)
    """When `max_seconds` began, by `time.monotonic`: now, or earlier where a program has done something before."""

    @property
    def is_late(self) -> bool:
        """Whether `max_seconds` are over."""
        return self.max_seconds is not None and time.monotonic() >= self.started + self.max_seconds

    def __post_init__(self) -> None:
        """UsageError for what no labelling can have."""
        for what, value in (("batch_size", self.batch_size), ("workers", self.workers)):
            if value is not None and value < 1:
                raise UsageError(f"`{what}={value}`: give 1 or more")
        check_temperature(self.temperature)
        if self.decode_device not in (None, "cpu"):
            check_decode_device(self.decode_device, self.crop_device or "device")
            object.__setattr__(self, "crop_device", self.crop_device or "device")


CropDevice = Literal["cpu", "device", "cuda"]
CROP_DEVICES = ("cpu", "device", "cuda")
"""Where crops can be made; cuda is the older name of the teacher's device, whichever it is, and what is recorded."""
DecodeDevice = Literal["cpu", "device"]
DECODE_DEVICES = ("cpu", "device")
"""Where images can be decoded."""


def check_crop_device(crop_device: str, interpolation: str) -> None:
    """UsageError for an unknown place, or for an interpolation that only the CPU has."""
    if crop_device not in CROP_DEVICES:
        raise UsageError(f"`crop_device={crop_device}`: choose one of {', '.join(CROP_DEVICES)}")
    if crop_device != "cpu" and interpolation not in DEVICE_INTERPOLATIONS:
        raise UsageError(
            f"`crop_device={crop_device}` with a teacher that wants {interpolation}: there are only "
            f"{' and '.join(DEVICE_INTERPOLATIONS)} on the device, use `crop_device=cpu`"
        )


def check_decode_device(decode_device: str | None, crop_device: str) -> None:
    """UsageError for an unknown place, or for an image that would come back from the device to be cropped."""
    if decode_device not in DECODE_DEVICES:
        raise UsageError(
            f"`decode_device={decode_device}`: choose one of {', '.join(DECODE_DEVICES)}"
        )
    if decode_device != "cpu" and crop_device == "cpu":
        raise UsageError(
            f"`decode_device={decode_device}` with `crop_device=cpu`: crops are cut where the image is decoded, leave "
            "`crop_device` out"
        )


def check_augmented(
    augmentation: object | None,
    codec: LabelCodec,
    crop_device: str | None,
) -> None:
    """UsageError for augmented or mixed crops where the teacher would not see them: on a GPU, and in maps of images."""
    if not augmentation:
        return
    if crop_device not in (None, "cpu"):
        raise UsageError(
            f"`crop_device={crop_device}` with recorded augmentation or mixing: these run on the CPU, leave it out"
        )
    if codec.takes == "map":
        raise UsageError(
            "label maps are of whole images, and this plan's crops are augmented or mixed: make them on a plan "
            "whose are not"
        )
