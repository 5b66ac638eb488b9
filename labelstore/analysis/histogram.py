"""How probable the teacher found its crops: the bins of FerKD Table 1, beside the paper's figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from labelstore.blocks.shipping import MapBlocks
from labelstore.blocks.threads import map_in_threads
from labelstore.calibration.probability import CRITERIA, Criterion
from labelstore.calibration.threshold_counts import ThresholdCounts, count_thresholds
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
    found = count_thresholds(labels, edges, criterion=criterion, map_blocks=map_blocks)
    return Histogram(
        label_set=labels.name,
        criterion=criterion,
        bins=bins_of(found, edges, is_papers=edges == TABLE_1_EDGES and criterion == CRITERIA[0]),
        num_crops=int(found.labelled.sum()),
        missing=found.missing,
        is_complete=labels.is_complete,
    )


def bins_of(
    found: ThresholdCounts,
    edges: tuple[float, ...] = TABLE_1_EDGES,
    *,
    is_papers: bool = True,
) -> tuple[HistogramBin, ...]:
    """Bins from counts of the edges among other thresholds, beside the paper's figures where `is_papers`."""
    below, labelled = found.below.sum(axis=0), int(found.labelled.sum())
    cumulative = [*(int(below[found.values.index(edge)]) for edge in edges[1:-1]), labelled]
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
