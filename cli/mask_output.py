"""What the commands that make a mask say at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cli.output import say

if TYPE_CHECKING:
    from labelstore.calibration import Preview


def say_mask(found: Preview, name: str, store: Path) -> None:
    """Where the mask is, and how to train with it where it leaves a crop to train on."""
    usable = sum(choice.counts.usable for choice in found.choices)
    use = f"train with --labels ferkd --mask {name}" if usable else "it discards every crop"
    say(f"mask {name} is in {store}: {use}")
