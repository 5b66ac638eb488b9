"""A mask: a region code per crop, computed offline by calibration, and what its rule makes of labels (FerKD Eq. 4)."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import MaskRow
from labelstore.codecs.base import SparseLabels
from labelstore.errors import UsageError
from labelstore.store.layout import REGION, Layout

if TYPE_CHECKING:
    from labelstore.store.label_set import LabelSet
    from labelstore.store.store import Store


class Region(IntEnum):
    """Code of a crop under calibration, as a mask stores it (uint8)."""

    TOO_HARD = 0
    HARD = 1
    IMPORTANT = 2
    TOO_EASY = 3
    MISSING = 255


def is_usable(regions: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which crops are drawn: HARD and IMPORTANT ones."""
    usable: NDArray[np.bool_] = (regions == Region.HARD) | (regions == Region.IMPORTANT)
    return usable


class Mask:
    """Region codes of one teacher's crops on one plan; serves all label sets of that teacher there."""

    def __init__(self, store: Store, row: MaskRow) -> None:
        self.store = store
        self.row = row
        self._regions = store.group(f"masks/{row.name}")
        self._plan_columns = Layout.of(store.plan(row.plan), store.num_rows).num_columns

    def __getstate__(self) -> dict[str, Any]:
        # a worker process opens its own handles
        return {"store": self.store, "name": self.row.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["store"].mask(state["name"]).__dict__)

    @property
    def name(self) -> str:
        """Name of the mask."""
        return self.row.name

    @property
    def identity(self) -> str:
        """What tells the mask from another one of the same name, made later, and from itself before an update."""
        return f"{self._regions.identity} {self.num_crops}"

    @property
    def rule(self) -> dict[str, Any]:
        """Thresholds, criterion, epsilon, as recorded."""
        return dict(self.row.rule)

    @property
    def temperature(self) -> float | None:
        """The T at which the labels were looked at: T0 of the label set that the mask was made from.

        None where the mask does not say it and that label set is gone.
        """
        if "temperature" in self.row.rule:
            return float(self.row.rule["temperature"])
        made_from = self.store.find_label_set(self.row.label_set)
        return None if made_from is None else made_from.temperature

    @property
    def num_crops(self) -> int:
        """Crops of each image that the mask covers: those it was made for, until it is updated."""
        return self.row.num_crops

    @property
    def blocks(self) -> tuple[int, ...]:
        """Image blocks that the mask covers."""
        return self._regions.blocks

    @property
    def is_complete(self) -> bool:
        """True when every image block is covered, up to `num_crops`."""
        return len(self.blocks) == self._regions.layout.num_blocks

    def check_matches(self, labels: LabelSet) -> None:
        """UsageError for labels of another teacher or crop plan than the mask's."""
        if self.row.plan != labels.plan.name:
            raise UsageError(
                f"mask {self.name} belongs to crop plan {self.row.plan}, label set {labels.name} to "
                f"{labels.plan.name}: choose a mask of the same plan"
            )
        if self.row.teacher != labels.row.teacher:
            raise UsageError(
                f"mask {self.name} was made from teacher {self.row.teacher}, label set {labels.name} has "
                f"{labels.row.teacher}: choose a mask of the same teacher"
            )

    def regions(self, block: int, columns: range | None = None) -> NDArray[np.uint8]:
        """Region codes of one image block: uint8 (n, m), 255 where there is no label.

        `columns` counts over all M crops of the plan; crops that it has grown by since are 255 too.
        """
        if self._plan_columns == self._regions.layout.num_columns:
            return self._regions.read(block, columns, "region")
        layout = self._regions.layout
        asked = range(self._plan_columns) if columns is None else columns
        covered = range(min(asked.start, layout.num_columns), min(asked.stop, layout.num_columns))
        codes = np.full(
            (len(layout.rows(block)), len(asked) * layout.crops_per_chunk), REGION.fill, np.uint8
        )
        if covered:
            known = self._regions.read(block, covered, "region")
            codes[:, : known.shape[1]] = known
        return codes


def calibrate_label(
    labels: SparseLabels,
    regions: NDArray[np.uint8],
    ground_truth: NDArray[np.integer],
    epsilon: float,
    num_classes: int,
) -> SparseLabels:
    """Labels (..., K) with HARD rows replaced: ground truth 1 - epsilon, epsilon / (C - 1) elsewhere.

    `regions` is (...) and `ground_truth` is broadcast to it: (n, 1) for (n, m) crops of n images. The
    other rows stay as they are. The result is new arrays; classes of a row stay distinct, and the ground
    truth comes first in it.
    """
    class_ids, probs, rest = labels.class_ids.copy(), labels.probs.copy(), labels.rest.copy()
    hard = regions == Region.HARD
    if not hard.any():
        return SparseLabels(class_ids=class_ids, probs=probs, rest=rest)
    truth = np.broadcast_to(ground_truth, regions.shape)[hard].astype(class_ids.dtype)
    ids = class_ids[hard]
    # where the ground truth is listed already, the first class takes its place: no class twice
    place = np.where(ids == truth[:, None], ids[:, :1], ids)
    place[:, 0] = truth
    elsewhere = epsilon / max(num_classes - 1, 1)
    softened = np.full(place.shape, elsewhere, np.float32)
    softened[:, 0] = 1 - epsilon
    class_ids[hard], probs[hard], rest[hard] = place, softened, elsewhere
    return SparseLabels(class_ids=class_ids, probs=probs, rest=rest)


def calibrate_dense(
    labels: NDArray[np.float32],
    regions: NDArray[np.uint8],
    ground_truth: NDArray[np.integer],
    epsilon: float,
    num_classes: int,
) -> NDArray[np.float32]:
    """`calibrate_label` for dense labels (..., C)."""
    hard = regions == Region.HARD
    truth = np.broadcast_to(ground_truth, regions.shape)[hard]
    softened = np.full((len(truth), num_classes), epsilon / max(num_classes - 1, 1), np.float32)
    softened[np.arange(len(truth)), truth] = 1 - epsilon
    calibrated = labels.copy()
    calibrated[hard] = softened
    return calibrated


def calibrated(
    labels: SparseLabels | NDArray[np.float32],
    mask: Mask,
    regions: NDArray[np.uint8],
    ground_truth: NDArray[np.integer],
    num_classes: int,
) -> SparseLabels | NDArray[np.float32]:
    """Labels, sparse (..., K) or dense (..., C), with what the mask's rule makes of HARD ones."""
    epsilon = float(mask.rule["epsilon"])
    if isinstance(labels, SparseLabels):
        return calibrate_label(labels, regions, ground_truth, epsilon, num_classes)
    return calibrate_dense(labels, regions, ground_truth, epsilon, num_classes)


def without_discarded(
    labels: SparseLabels | NDArray[np.float32], regions: NDArray[np.uint8]
) -> SparseLabels | NDArray[np.float32]:
    """The same labels, which calibration made, NaN in place where a crop is not drawn."""
    discarded = ~is_usable(regions)
    if discarded.any():
        for values in (
            (labels.probs, labels.rest) if isinstance(labels, SparseLabels) else (labels,)
        ):
            values[discarded] = np.nan
    return labels
