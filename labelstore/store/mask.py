"""A mask: a region code per crop, computed offline by calibration (FerKD Eq. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import MaskRow

if TYPE_CHECKING:
    from labelstore.store.store import Store


class Mask:
    """Region codes of one teacher's crops on one plan; serves all label sets of that teacher there."""

    def __init__(self, store: Store, row: MaskRow) -> None:
        self.store = store
        self.row = row
        self._regions = store.group(f"masks/{row.name}")

    @property
    def name(self) -> str:
        """Name of the mask."""
        return self.row.name

    @property
    def rule(self) -> dict[str, Any]:
        """Thresholds, criterion, epsilon, as recorded."""
        return dict(self.row.rule)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Image blocks that the mask covers."""
        return self._regions.blocks

    @property
    def is_complete(self) -> bool:
        """True when every image block is covered."""
        return len(self.blocks) == self._regions.layout.num_blocks

    def regions(self, block: int, columns: range | None = None) -> NDArray[np.uint8]:
        """Region codes of one image block: uint8 (n, m), 255 where there is no label."""
        return self._regions.read(block, columns, "region")
