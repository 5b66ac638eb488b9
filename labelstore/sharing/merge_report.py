"""What a merge did, or would do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class MergedLabels:
    """One label set of the merged store."""

    name: str
    from_stores: tuple[int, ...]
    """Images that come from each store, in the order in which the stores were given."""
    lacking: int
    """Images without labels for some crop: no store has them."""
    compared: int
    """Crops that two stores have and that were compared."""
    largest_difference: float
    """Largest difference of a probability among these."""


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge did, or would do."""

    path: Path
    stores: tuple[str, ...]
    num_images: int
    """N of the merged store."""
    overlapping: int
    """Images that more than one store has."""
    num_bad: int
    """Images that are left out: no store could use them."""
    label_sets: tuple[MergedLabels, ...]
    masks: tuple[str, ...]
    notes: tuple[str, ...]
    """What a reader should know, a line each: masks that were dropped, stores that are being written."""
    shards: int
    """Shards that the stores have labels for."""
    already: int
    """Those that an earlier call had committed."""
    dry_run: bool
    seconds: float

    @property
    def is_complete(self) -> bool:
        """True where every image has every label."""
        return not any(labels.lacking for labels in self.label_sets)
