"""Sizes of the experiment with a real teacher: what one machine of two cores does in two hours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.papers.setting import Setting


@dataclass(frozen=True, kw_only=True)
class RealSetting(Setting):
    """`images` counts pictures of each class here, of 61 classes in every folder."""

    images: Mapping[str, int] = field(default_factory=lambda: {"train": 10, "tune": 5, "val": 20})
    object_side: tuple[float, float] = (0.6, 0.95)
    """Of the pictures: with smaller objects the teacher is right on too few (`stamps`)."""
    input_size: int = 64
    num_crops: int = 8
    """M of the main store."""
    epochs: int = 16
    base_epochs: int = 24
    """Of the common start, on the ground truth."""
    lr: float = 5e-4
    base_lr: float = 4e-3


REAL_SMOKE = RealSetting(
    images={"train": 1, "tune": 1, "val": 1}, num_crops=4, epochs=4, base_epochs=2, batch_size=32
)
"""One tiny run of each arm."""
