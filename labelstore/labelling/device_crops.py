"""Where the teacher's crops are made (`crop_device`, `decode_device`), and what cannot be made there.

The label set records which it was: `device_pixels` and `replay` differ a little.
"""

from __future__ import annotations

from typing import Literal

from labelstore.codecs.base import LabelCodec
from labelstore.cropping.device_pixels import DEVICE_INTERPOLATIONS
from labelstore.errors import UsageError

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
