"""A teacher that writes down every forward pass: `tests.generation.counting_teacher:network`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

SOURCE = "tests.generation.counting_teacher:network"


class Counting(nn.Module):
    """Three classes from the mean colour; each call appends its number of crops to a file of this process.

    The first call waits until as many processes as `TOGETHER` says have come to theirs.
    """

    pretrained_cfg = {  # noqa: RUF012 - as timm's networks have it
        "input_size": (3, 16, 16),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "interpolation": "bilinear",
        "crop_pct": 0.875,
    }

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.copy_(3 * torch.eye(3))
            self.head.bias.zero_()

    def forward(self, crops: Tensor) -> Tensor:
        if crops.any() and "COUNTS" in os.environ:  # not the zeros that ask for the shape
            folder = Path(os.environ["COUNTS"])
            with (folder / str(os.getpid())).open("a") as file:
                file.write(f"{len(crops)}\n")
            until = time.monotonic() + 600
            while len(list(folder.iterdir())) < int(os.environ.get("TOGETHER", "1")):
                assert time.monotonic() < until, "the other process never came to its first crop"
                time.sleep(0.02)
        return self.head(crops.mean(dim=(2, 3)))


def network() -> nn.Module:
    return Counting()


def counts(folder: Path) -> dict[str, int]:
    """Crops that each process showed its teacher."""
    return {path.name: sum(map(int, path.read_text().split())) for path in sorted(folder.iterdir())}
