"""How probable the teacher found its crops: the bins of FerKD Table 1, beside the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.calibration.criterion import CRITERIA, Criterion, block_slabs
from labelstore.calibration.threshold_counts import ThresholdCounts
from labelstore.errors import UsageError

if TYPE_CHECKING:
    from labelstore.store import LabelSet

TABLE_1_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
"""Bins are closed below and open above; the last one holds 1.0 too."""
PAPER_RATIOS = (
    0.0043, 0.0089, 0.0129, 0.0203, 0.0366, 0.0435, 0.0504, 0.0776, 0.0814, 0.2873, 0.3734, 0.0033,
)  # fmt: skip
"""FerKD Table 1, "ratio": EfficientNet-L2's labels for ImageNet-1K."""
PAPER_CUMULATIVE = (
    0.0043, 0.0132, 0.0261, 0.0464, 0.0831, 0.1265, 0.1769, 0.2545, 0.3359, 0.6232, 0.9967, 1.0,
)  # fmt: skip
"""FerKD Table 1, "agg. ratio", as printed; it differs from the sums of the ratios by rounding."""


@dataclass(frozen=True, kw_only=True)
class HistogramBin:
    """One row of FerKD Table 1."""

    low: float
    high: float
    count: int
    ratio: float
    """Share of the labelled crops."""
    cumulative: float
    """Share of the labelled crops below `high`: "agg. ratio"."""
    paper_ratio: float | None
    """The paper's figure, where the bins are the paper's and the criterion too."""
    paper_cumulative: float | None


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Crops of a label set by probability."""

    label_set: str
    criterion: Criterion
    bins: tuple[HistogramBin, ...]
    num_crops: int
    """Labelled crops: the sum of the counts."""
    missing: int
    """Crops of images that were left out."""
    is_complete: bool
    """False: some image blocks have no labels yet, and count nowhere."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def histogram(
    labels: LabelSet,
    *,
    criterion: Criterion = "max_probability",
    edges: tuple[float, ...] = TABLE_1_EDGES,
    map_blocks: MapBlocks = map_in_threads,
) -> Histogram:
    """Counts of all committed crops of `labels` by probability. One walk, one block in memory.

    `edges` are increasing and run from 0 to 1; they are compared as float32, as labels are recovered.
    """
    if len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or list(edges) != sorted(set(edges)):
        raise UsageError(f"edges {edges}: give increasing numbers from 0 to 1, both included")
    if criterion == "ground_truth_probability" and (labels.true_output[labels.present] < 0).any():
        raise UsageError(
            f"label set {labels.name} has images without ground truth: use max_probability"
        )
    inner = np.array(edges[1:-1], np.float32)
    below = np.zeros(len(inner) + 2, np.int64)
    for found in map_blocks(partial(_count_block, labels, criterion, inner), labels.blocks):
        below += found
    labelled, missing = int(below[-2]), int(below[-1]) - labels.num_free
    is_papers = edges == TABLE_1_EDGES and criterion == CRITERIA[0]
    return Histogram(
        label_set=labels.name,
        criterion=criterion,
        bins=_bins(below[:-2].tolist(), labelled, edges, is_papers=is_papers),
        num_crops=labelled,
        missing=missing,
        is_complete=labels.is_complete,
    )


def bins_of(found: ThresholdCounts) -> tuple[HistogramBin, ...]:
    """Table 1 from counts in which its edges are among the thresholds."""
    below = found.below.sum(axis=0)
    inner = [int(below[found.values.index(edge)]) for edge in TABLE_1_EDGES[1:-1]]
    return _bins(inner, int(found.labelled.sum()), TABLE_1_EDGES, is_papers=True)


def _count_block(
    labels: LabelSet, criterion: Criterion, inner: NDArray[np.float32], block: int
) -> NDArray[np.int64]:
    """Crops below each inner edge, labelled crops, missing crops: a tenth of the time of counts by class and image."""
    below = np.zeros(len(inner) + 2, np.int64)
    for probability in block_slabs(labels, criterion, block):
        for i, edge in enumerate(inner):
            below[i] += np.count_nonzero(probability < edge)
        below[-2] += probability.size - np.count_nonzero(np.isnan(probability))
        below[-1] += probability.size
    below[-1] -= below[-2]
    return below


def _bins(
    below: Sequence[int], labelled: int, edges: tuple[float, ...], *, is_papers: bool
) -> tuple[HistogramBin, ...]:
    """Bins from the crops below each inner edge and those with a label, beside the paper's where `is_papers`."""
    cumulative = [*below, labelled]
    counts = np.diff(cumulative, prepend=0).tolist()
    total = max(labelled, 1)
    return tuple(
        HistogramBin(
            low=edges[i],
            high=edges[i + 1],
            count=counts[i],
            ratio=counts[i] / total,
            cumulative=cumulative[i] / total,
            paper_ratio=PAPER_RATIOS[i] if is_papers else None,
            paper_cumulative=PAPER_CUMULATIVE[i] if is_papers else None,
        )
        for i in range(len(counts))
    )
