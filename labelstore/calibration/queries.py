"""A mask by conditions instead of thresholds: which crops to discard, and which to give the ground truth.

A discarded crop has the code TOO_HARD, whatever the reason; one that is hardened, HARD; every other, IMPORTANT. A
crop that satisfies both conditions is discarded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.columns import COLUMNS, OF_GROUND_TRUTH
from labelstore.blocks.condition import Condition
from labelstore.blocks.crop_slab import CropSlab, slabs
from labelstore.calibration.criterion import check_calibratable, check_ground_truth
from labelstore.calibration.regions import BESIDE_THE_RULE, RegionThresholds, check_epsilon
from labelstore.errors import UsageError
from labelstore.store.region_mask import Region

if TYPE_CHECKING:
    from labelstore.store import LabelSet

OF_PROBABILITIES = frozenset(
    {"max_probability", "ground_truth_probability", "entropy", "kept_mass"}
)
"""Columns that mean something else where a codec does not keep the teacher's probabilities."""


@dataclass(frozen=True, kw_only=True)
class RegionQuery:
    """A rule by conditions over the columns of a crop (`labelstore.blocks.columns.COLUMNS`).

    >>> RegionQuery(discard="area < 0.1 and max_probability < 0.2").describe()
    'discard area < 0.1 and max_probability < 0.2'
    """

    discard: str | None = None
    """Crops that satisfy it are never drawn."""
    harden: str | None = None
    """Crops that satisfy it get the softened ground truth instead of the teacher's label."""
    epsilon: float = 0.1
    """As in `RegionThresholds`."""

    def __post_init__(self) -> None:
        for condition in self._conditions():
            if masked := sorted(c for c in condition.columns if COLUMNS[c].source == "mask"):
                raise UsageError(
                    f"a mask by a condition on {masked[0]!r}: it would change with the mask that this is of; "
                    "say the same with the columns that mask was made from"
                )
        if self.discard is None and self.harden is None:
            raise UsageError("a mask by conditions needs `discard` or `harden`")
        check_epsilon(self.epsilon)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The rule that `to_record` described; what else a mask records beside it is not part of it."""
        return cls(**{name: value for name, value in record.items() if name not in BESIDE_THE_RULE})

    @property
    def calibrates(self) -> bool:
        """Whether any crop can be HARD."""
        return self.harden is not None

    def block_regions(
        self, labels: LabelSet, block: int, columns: range | None = None
    ) -> NDArray[np.uint8]:
        """Region codes (n, m) of the crops of one image block; MISSING where there is no label."""
        conditions = self._conditions()
        wanted = frozenset[str]().union(*(condition.columns for condition in conditions))
        slab = CropSlab(labels, block, columns, wanted=wanted)
        codes = np.full(slab.shape, Region.IMPORTANT, np.uint8)
        for text, region in ((self.harden, Region.HARD), (self.discard, Region.TOO_HARD)):
            if text is not None:
                codes[Condition.parse(text).holds(slab)] = region
        codes[~slab.present] = Region.MISSING
        return codes

    def slabs(self, labels: LabelSet, block: int) -> Iterator[NDArray[np.uint8]]:
        """`block_regions` a bounded number of crops at a time, in the order of crops."""
        return (self.block_regions(labels, block, columns) for columns in slabs(labels))

    def check(self, labels: LabelSet) -> None:
        """UsageError where these labels cannot be judged by the conditions."""
        wanted = frozenset[str]().union(*(condition.columns for condition in self._conditions()))
        if wanted & OF_PROBABILITIES:
            check_calibratable(labels, "max_probability", calibrates=False)
        if self.calibrates or wanted & OF_GROUND_TRUTH:
            check_ground_truth(labels)

    def describe(self) -> str:
        """The rule in a few words."""
        parts = (("discard", self.discard), ("ground truth for", self.harden))
        return "; ".join(f"{word} {text}" for word, text in parts if text is not None)

    def to_record(self) -> dict[str, Any]:
        """Parameters as JSON values."""
        return asdict(self)

    def _conditions(self) -> list[Condition]:
        return [Condition.parse(text) for text in (self.discard, self.harden) if text is not None]


def rule_from_record(record: Mapping[str, Any]) -> RegionThresholds | RegionQuery:
    """The rule of a mask, from what the catalogue keeps of it."""
    if "discard" in record:
        return RegionQuery.from_record(record)
    return RegionThresholds.from_record(dict(record))
