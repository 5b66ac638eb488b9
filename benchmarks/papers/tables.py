"""A table of a paper, as arms to train and claims to judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.papers.claims import Claim
from benchmarks.papers.runs import Arm

CROPS_PER_IMAGE = 2
"""m of the arms with stored labels. The papers' is 4, in batches of 1,024; in a batch of 64 crops, 4 of each image leave 16 images
for a batch norm to go by. On the tuning pictures (two seeds) FKD reached 52 % with m = 1, 46 % with 2, 42 % with 4, and vanilla
43 % with m = 1. 2 is the fewest that SelfMix and a multi-crop method mean anything with."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table or figure of a paper in miniature."""

    name: str
    """For --only: "fkd-table7"."""
    title: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    here: str
    """What differs from the paper's setting and matters for this table."""
    paper: Mapping[str, float | str] = field(default_factory=dict)
    """Arm -> the paper's figure, where it prints one."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """Further figures of the runs that the table shows, with their headings."""
    found: str = ""
    """What a look at the claims that fail has shown."""


def arm(name: str, labels: str = "ground-truth", **given: Any) -> Arm:
    """An arm from options of `TrainConfig`; those that begin with "needs_" say what the stage makes for a field."""
    needs = {
        key.removeprefix("needs_"): given.pop(key)
        for key in list(given)
        if key.startswith("needs_")
    }
    return Arm(name=name, options={"labels": labels, **given}, needs=needs)


def stored(
    name: str, label_set: str = "ms5", labels: str = "fkd", store: str = "main", **given: Any
) -> Arm:
    """An arm of stored labels; m = 2 crops of an image in a batch unless it says otherwise."""
    given.setdefault("crops_per_image", CROPS_PER_IMAGE)
    return arm(name, labels, label_set=label_set, needs_store=f"store:{store}", **given)


def calibrated(name: str, rule: str, label_set: str = "ms5", **given: Any) -> Arm:
    """An arm of stored labels under a mask: thresholds LOW-MIDDLE-TOP, shares with q before them."""
    return stored(name, label_set, "ferkd", needs_mask=f"mask:{label_set}/{rule}", **given)
