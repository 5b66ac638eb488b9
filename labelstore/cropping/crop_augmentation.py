"""Recorded augmentation: what is done to a crop's pixels after it was cut, resized and flipped, for teacher and
student alike.

A plan keeps strengths; what happens to one crop is a pure function of (plan's seed, image key, crop), as its box is, so
that it depends on no worker, order, growth or merge. Words x0 to x3 are those of Philox-4x32-10 with the plan's key and
counter (a, c, stream mod 2^32, stream >> 32) as in `crop_plan`, whose attempts end before a = 16:

- a = 16: colour jitter, as torchvision's ColorJitter. Brightness, contrast and saturation are multiplied by
  1 + s (2 u - 1) and hue turned by s (2 u - 1), with u = (x_k >> 8) / 2^24 for k = 0..3 in this order and s the
  strength.
- a = 17: their order is the (24 x0 >> 32)-th permutation of the four in lexicographic order. Strength 0 is left out.
- a = 18 + j: the j-th operation of RandAugment (Cubuk et al. 2020), number 15 x0 >> 32 of `OPERATIONS`. Its
  magnitude is m + d z, cut to 0..10, with z = (S / 2^16 - 2) sqrt(3) and S the sum of the 16-bit halves of x1 and
  x2: a bell of variance 1 without a logarithm. The sign is + if x3 is even, the resampling bicubic if bit 1 of x3
  is set, and the operation is done if x3 >> 16 is below 2^15 (probability 0.5, as in timm).
- Colours come first, then RandAugment; areas that a shift uncovers become `FILL`.

All in float64 with the operations +, -, *, / and one constant root: the same on every machine. Pixels are Pillow's,
timm's and torchvision's (`pixel_operations`), whose versions a label set records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.cropping.crop_plan import U64, image_streams, philox4x32
from labelstore.errors import FormatVersionError, UsageError

LAW = "color-jitter+rand-augment/philox4x32-10/1"
"""Name of the arithmetic above, as recorded; it changes whenever an operation would."""
RECORD = "augmentation"
"""Entry of a plan's parameters."""
COLOURS = ("brightness", "contrast", "saturation", "hue")
OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
"""timm's "increasing" set, in timm's order: severities grow with the magnitude."""
FILL = (124, 116, 104)
"""Colour of what a shift uncovers: ImageNet's mean."""
MAX_MAGNITUDE = 10.0
MAX_OPS = 8
BELL = math.sqrt(3.0)
FIRST_COLOUR, ORDER_OF_COLOURS, FIRST_OPERATION = 16, 17, 18
"""First word of the Philox counter."""
ORDERS = tuple(permutations(range(4)))


class Operation(NamedTuple):
    """One change of a crop's pixels."""

    name: str
    """One of `COLOURS` or `OPERATIONS`."""
    value: float
    """Factor of a colour, turn of the hue, or level of an operation within 0 and 1."""
    sign: int = 1
    bicubic: bool = False


Operations: TypeAlias = tuple[Operation, ...]
"""What is done to one crop, in order."""


@dataclass(frozen=True, kw_only=True)
class CropAugmentation:
    """Strengths of a plan's augmentation, with the names of `trainer run`."""

    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Brightness, contrast, saturation, hue: the first three 0 to 1, hue 0 to 0.5."""
    rand_augment: float = 0.0
    """Magnitude, 0 to 10; 0 is none."""
    rand_augment_std: float = 0.5
    """Standard deviation of the magnitude."""
    rand_augment_ops: int = 2
    """Operations of each crop."""

    def __post_init__(self) -> None:
        """Refuse strengths that mean nothing."""
        jitter = tuple(float(strength) for strength in self.color_jitter)
        object.__setattr__(self, "color_jitter", jitter)
        if len(jitter) != 4 or not all(0 <= s <= 1 for s in jitter) or jitter[3] > 0.5:
            raise UsageError(
                f"color_jitter {jitter}: give brightness, contrast, saturation (0 to 1) and hue (0 to 0.5)"
            )
        if not 0 <= self.rand_augment <= MAX_MAGNITUDE or not 0 <= self.rand_augment_std <= 10:
            raise UsageError(
                f"rand_augment {self.rand_augment} with deviation {self.rand_augment_std}: each is 0 to 10"
            )
        if not 1 <= self.rand_augment_ops <= MAX_OPS:
            raise UsageError(f"rand_augment_ops {self.rand_augment_ops}: give 1 to {MAX_OPS}")

    def __bool__(self) -> bool:
        return any(self.color_jitter) or self.rand_augment > 0

    def __str__(self) -> str:
        parts = []
        if any(self.color_jitter):
            parts.append(f"colour jitter {', '.join(f'{s:g}' for s in self.color_jitter)}")
        if self.rand_augment:
            parts.append(
                f"RandAugment {self.rand_augment:g} ± {self.rand_augment_std:g}, {self.rand_augment_ops} operations"
            )
        return "; ".join(parts) or "none"

    def to_record(self) -> dict[str, Any]:
        """Strengths as JSON values, with the name of the law."""
        return {"law": LAW, **asdict(self), "color_jitter": list(self.color_jitter)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Inverse of `to_record`. FormatVersionError for a law of a newer version, UsageError for other entries."""
        entries = dict(record)
        law = entries.pop("law", None)
        if law != LAW:
            raise FormatVersionError(
                f"augmentation with law {law!r}: this version computes {LAW!r}, use a newer labelstore"
            )
        try:
            return cls(**entries)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"augmentation record with unknown or wrong entries: {error}"
            ) from None


@dataclass(frozen=True)
class PlannedAugmentation:
    """Strengths and seed: what happens to every crop of a plan."""

    seed: int
    settings: CropAugmentation

    def operations(
        self, key: str | int, crops: Sequence[int] | NDArray[np.integer[Any]]
    ) -> list[Operations]:
        """Return what is done to each of these crops of an image, given by its key or its stream number."""
        stream = int(image_streams([key])[0]) if isinstance(key, str) else key
        numbers = np.asarray(crops).astype(np.uint64)
        of_crops: list[list[Operation]] = [[] for _ in numbers]
        if any(self.settings.color_jitter):
            self._jitter(of_crops, stream, numbers)
        if self.settings.rand_augment > 0:
            for nth in range(self.settings.rand_augment_ops):
                self._rand_augment(of_crops, self._words(FIRST_OPERATION + nth, stream, numbers))
        return [tuple(operations) for operations in of_crops]

    def _jitter(self, of_crops: list[list[Operation]], stream: int, crops: U64) -> None:
        factors = self._words(FIRST_COLOUR, stream, crops)
        order = (self._words(ORDER_OF_COLOURS, stream, crops)[:, 0] * np.uint64(24)) >> np.uint64(
            32
        )
        strengths = self.settings.color_jitter
        for operations, words, which in zip(
            of_crops, factors.tolist(), order.tolist(), strict=True
        ):
            for at in ORDERS[which]:
                if strengths[at]:
                    by = strengths[at] * (2 * ((words[at] >> 8) / 2**24) - 1)
                    operations.append(Operation(COLOURS[at], by if at == 3 else 1 + by))

    def _rand_augment(self, of_crops: list[list[Operation]], words: U64) -> None:
        settings = self.settings
        for operations, (x0, x1, x2, x3) in zip(of_crops, words.tolist(), strict=True):
            if x3 >> 16 >= 1 << 15:
                continue
            total = (x1 & 0xFFFF) + (x1 >> 16) + (x2 & 0xFFFF) + (x2 >> 16)
            bell = (total / 2**16 - 2) * BELL
            level = settings.rand_augment + settings.rand_augment_std * bell
            operations.append(
                Operation(
                    OPERATIONS[len(OPERATIONS) * x0 >> 32],
                    min(max(level, 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE,
                    -1 if x3 & 1 else 1,
                    bool(x3 & 2),
                )
            )

    def _words(self, first: int, stream: int, crops: U64) -> U64:
        """(crops, 4) Philox words."""
        counter = (
            np.full_like(crops, first),
            crops,
            np.full_like(crops, stream & 0xFFFF_FFFF),
            np.full_like(crops, stream >> 32),
        )
        key = (self.seed & 0xFFFF_FFFF, self.seed >> 32)
        return np.stack(philox4x32(counter, key), axis=1)


def planned_augmentation(parameters: Mapping[str, Any]) -> PlannedAugmentation | None:
    """Read from a plan's parameters what is done to its crops; None for nothing."""
    record = parameters.get(RECORD)
    if record is None:
        return None
    if not isinstance(record, Mapping):
        raise UsageError(f"a plan's augmentation is {str(record)[:40]!r}: it must be a mapping")
    return PlannedAugmentation(int(parameters["seed"]), CropAugmentation.from_record(record))
