"""Regions of crops by their probability (FerKD Eq. 4), and the rules that assign them.

With thresholds low <= middle <= top, a crop of probability p is

    p < low              TOO_HARD    discarded
    low <= p < middle    HARD        label becomes the ground truth, softened by epsilon
    middle <= p <= top   IMPORTANT   label kept
    p > top              TOO_EASY    discarded

Eq. 4 leaves p = low open; here it is hard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.calibration.criterion import (
    CRITERIA,
    Criterion,
    block_slabs,
    check_calibratable,
    probabilities,
)
from labelstore.calibration.quantiles import exact_quantiles
from labelstore.errors import UsageError
from labelstore.store.region_mask import Region

if TYPE_CHECKING:
    from labelstore.store import LabelSet


class Rule(Protocol):
    """A calibration rule: a frozen dataclass that gives every crop of a label set its region code."""

    @property
    def calibrates(self) -> bool:
        """Whether any crop can be HARD, so that its label becomes the ground truth."""

    def block_regions(
        self, labels: LabelSet, block: int, columns: range | None = None
    ) -> NDArray[np.uint8]:
        """Region codes (n, m) of the crops of one image block; MISSING where there is no label."""

    def slabs(self, labels: LabelSet, block: int) -> Iterator[NDArray[np.uint8]]:
        """`block_regions` a bounded number of crops at a time, in the order of crops."""

    def check(self, labels: LabelSet) -> None:
        """UsageError where these labels cannot be judged by it."""

    def describe(self) -> str:
        """The rule in a few words."""

    def to_record(self) -> dict[str, Any]:
        """Parameters as JSON values: what the catalogue keeps."""


BESIDE_THE_RULE = ("quantiles", "temperature")
"""What a mask's record has beside its rule: the quantiles asked for, and T0 of the labels where it is not 1."""


@dataclass(frozen=True, kw_only=True)
class RegionThresholds:
    """FerKD's rule. Defaults are the paper's final setting (4.2); it gives no epsilon.

    >>> RegionThresholds().regions(np.array([0.1, 0.15, 0.3, 0.95, 0.96, np.nan], np.float32))
    array([  0,   1,   2,   2,   3, 255], dtype=uint8)
    """

    low: float = 0.15
    """Crops below it are too hard."""
    middle: float = 0.30
    """Crops from `low` to below it are hard; equal to `low`, no label is replaced."""
    top: float = 0.95
    """Crops above it are too easy; 1.0 keeps every easy crop."""
    criterion: Criterion = "max_probability"
    epsilon: float = 0.1
    """In hard regions the ground truth gets 1 - epsilon, every other class epsilon / (C - 1)."""

    def __post_init__(self) -> None:
        _check(self.low, self.middle, self.top, self.criterion, self.epsilon, "thresholds")

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """The rule that `to_record` described; what else a mask records beside it is not part of it."""
        return cls(**{name: value for name, value in record.items() if name not in BESIDE_THE_RULE})

    @property
    def calibrates(self) -> bool:
        """Whether any crop can be HARD."""
        return self.low < self.middle

    def regions(self, probability: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Region codes (uint8) of probabilities of any shape; thresholds are compared as float32."""
        probability = np.asarray(probability, np.float32)
        low, middle, top = (np.float32(value) for value in (self.low, self.middle, self.top))
        # codes count how many of the three thresholds a crop has passed
        codes: NDArray[np.uint8] = (probability >= low).astype(np.uint8)
        codes += probability >= middle
        codes += probability > top
        codes[np.isnan(probability)] = Region.MISSING
        return codes

    def block_regions(
        self, labels: LabelSet, block: int, columns: range | None = None
    ) -> NDArray[np.uint8]:
        """Region codes (n, m) of the crops of one image block; MISSING where there is no label."""
        return self.regions(probabilities(labels, self.criterion, block, columns))

    def slabs(self, labels: LabelSet, block: int) -> Iterator[NDArray[np.uint8]]:
        """`block_regions` a bounded number of crops at a time, in the order of crops."""
        return map(self.regions, block_slabs(labels, self.criterion, block))

    def check(self, labels: LabelSet) -> None:
        """UsageError where these labels cannot be judged by it, be calibrated, or where nothing would be left."""
        check_calibratable(labels, self.criterion, calibrates=self.calibrates)
        least = 1 / labels.num_classes
        if self.criterion == "max_probability" and self.top < 0.99 * least:
            raise UsageError(
                f"top {self.top:g}: the largest of {labels.num_classes} probabilities is never below {least:.2g}, "
                "so every crop would be discarded as too easy; 1 discards none"
            )

    def describe(self) -> str:
        """low / middle / top."""
        return f"{self.low:.4g} / {self.middle:.4g} / {self.top:.6g}"

    def to_record(self) -> dict[str, Any]:
        """Parameters as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RegionQuantiles:
    """FerKD's rule by shares of the crops instead of thresholds, which do not carry over between teachers.

    Crops of equal probability share a region, so ties are never split: fewer than `low` of the crops
    become too hard, fewer than `middle` too hard or hard, and at most 1 - `top` too easy. Where a sharp
    teacher gives many crops the same largest value (1.0), none of these is too easy if the quantile falls on them.
    """

    low: float = 0.05
    """Share of the crops at most discarded as too hard."""
    middle: float = 0.15
    """Share at most discarded as too hard or calibrated."""
    top: float = 0.90
    """Share at least not discarded as too easy."""
    criterion: Criterion = "max_probability"
    epsilon: float = 0.1
    """As in `RegionThresholds`."""

    def __post_init__(self) -> None:
        _check(self.low, self.middle, self.top, self.criterion, self.epsilon, "quantiles")

    def thresholds(
        self, labels: LabelSet, *, map_blocks: MapBlocks = map_in_threads
    ) -> RegionThresholds:
        """The thresholds that these shares fall on, over all committed crops of `labels`."""
        quantiles = exact_quantiles(
            labels, self.shares, criterion=self.criterion, map_blocks=map_blocks
        )
        return self.at(quantiles)

    @property
    def shares(self) -> tuple[float, float, float]:
        """low, middle, top."""
        return self.low, self.middle, self.top

    def at(self, values: list[float]) -> RegionThresholds:
        """The rule with these values at the three quantiles."""
        low, middle, top = (min(value, 1.0) for value in values)
        return RegionThresholds(
            low=low, middle=middle, top=top, criterion=self.criterion, epsilon=self.epsilon
        )

    def to_record(self) -> dict[str, Any]:
        """The three shares as JSON values."""
        return {"low": self.low, "middle": self.middle, "top": self.top}


def _check(
    low: float, middle: float, top: float, criterion: str, epsilon: float, what: str
) -> None:
    if not 0 <= low <= middle <= top <= 1:
        raise UsageError(
            f"{what} low {low}, middle {middle}, top {top}: they must be in order within 0 to 1, "
            "low <= middle <= top"
        )
    if criterion not in CRITERIA:
        raise UsageError(f"criterion {criterion!r}: choose {' or '.join(CRITERIA)}")
    check_epsilon(epsilon)


def check_epsilon(epsilon: float) -> None:
    """UsageError unless it is a share of the mass that a softened ground truth can give away."""
    if not 0 <= epsilon < 1:
        raise UsageError(f"epsilon {epsilon}: it must be at least 0 and below 1")
