"""What the miniature is made of and how long it trains: every choice in one place, each made on the tuning images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of the data, the networks and the runs."""

    data_seed: int = 0
    context: float = 0.7
    """Share of the pictures in front of their class's own photograph."""
    images: Mapping[str, int] = field(
        default_factory=lambda: {"teacher": 6000, "train": 1000, "tune": 2000, "val": 10_000}
    )
    """Pictures per folder; train's are the first of teacher's."""
    input_size: int = 32
    num_crops: int = 64
    """M of the main store."""
    epochs: int = 32
    """Crops a student sees, in multiples of the train images."""
    teacher_epochs: int = 24
    batch_size: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.05

    def to_record(self) -> dict[str, Any]:
        """Every choice as plain values: what a kept result depends on."""
        return {**asdict(self), "images": dict(self.images)}

    def network(self, width: int = 16) -> dict[str, Any]:
        """timm's resnet18 with one block per stage."""
        return {
            "layers": [1, 1, 1, 1],
            "channels": [width, 2 * width, 4 * width, 8 * width],
            "stem_type": "deep",
            "stem_width": width // 2,
            "zero_init_last": False,
        }


SMOKE = Setting(
    images={"teacher": 120, "train": 40, "tune": 40, "val": 40},
    num_crops=32,
    epochs=4,
    teacher_epochs=2,
    batch_size=32,
)
"""One tiny cell of each table: does it run, not what does it say."""
