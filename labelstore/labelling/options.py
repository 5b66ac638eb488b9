"""How labels are to be made, as it was asked for; what is wrong with it is said before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from labelstore.errors import UsageError
from labelstore.labelling.device_crops import CropDevice, DecodeDevice, check_decode_device
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

    def __post_init__(self) -> None:
        """UsageError for what no labelling can have."""
        for what, value in (("batch_size", self.batch_size), ("workers", self.workers)):
            if value is not None and value < 1:
                raise UsageError(f"`{what}={value}`: give 1 or more")
        check_temperature(self.temperature)
        if self.decode_device not in (None, "cpu"):
            check_decode_device(self.decode_device, self.crop_device or "device")
            object.__setattr__(self, "crop_device", self.crop_device or "device")
