"""Crops that came with imported labels, for further teachers on the same plan: read, not computed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import PlanRow
from labelstore.errors import NotGenerated, RejectedInput, UsageError
from labelstore.store.layout import Layout

if TYPE_CHECKING:
    from labelstore.store.store import Store

BLOCKS_KEPT = 4
"""Decoded image blocks: images come in the order of the rows."""


class StoredCrops:
    """Boxes and flips of a plan by image key; threads may share it."""

    def __init__(self, store: Store, plan: PlanRow) -> None:
        if plan.parameters.get("mixed"):
            raise UsageError(
                f"crop plan {plan.name} was imported with crops that were mixed before the teacher saw them: "
                "a further teacher would see something else; make another plan for it"
            )
        self._store = store
        self._plan = plan
        self._layout = Layout.of(plan, store.num_rows)
        self._blocks: OrderedDict[int, tuple[NDArray[np.uint16], NDArray[np.uint8]]] = OrderedDict()
        self._lock = threading.Lock()

    def crops(
        self, key: str, height: int, width: int, crops: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (m, 4) and flips (m,) of one image; NotGenerated where they were not imported yet.

        RejectedInput for an image of another size than the boxes were made for.
        """
        row = self._store.row_of_key[key]
        block, offset = divmod(row, self._layout.images_per_shard)
        boxes, flips = self._block(block, key)
        columns = self._store.image_columns
        known = (int(columns["height"][row]), int(columns["width"][row]))
        if known != (height, width):
            raise RejectedInput(
                f"{key}: is {height} x {width} pixels (height x width), its imported crops are of {known[0]} x "
                f"{known[1]}"
            )
        return boxes[offset][crops], flips[offset][crops] == 1

    def _block(self, block: int, key: str) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
        with self._lock:
            if block not in self._blocks:
                group = self._store.group(f"crops/{self._plan.name}")
                if block not in group.blocks:
                    raise NotGenerated(
                        f"{key}: its crops were not imported yet; "
                        "run the same `labelstore.import_labels` again to finish them"
                    )
                self._blocks[block] = (
                    group.read(block, None, "box"),
                    group.read(block, None, "flip"),
                )
                while len(self._blocks) > BLOCKS_KEPT:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(block)
            return self._blocks[block]
