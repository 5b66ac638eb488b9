"""A label set in a few figures: how much is there, how sure the teacher is, how often it is right, what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, at_most, map_in_threads
from labelstore.calibration.criterion import block_slabs
from labelstore.codecs import in_short

if TYPE_CHECKING:
    from labelstore.store import LabelSet

SAMPLED_BLOCKS = 8


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A label set in figures. Shares and means are over the sampled image blocks."""

    label_set: str
    teacher: str
    codec: dict[str, Any]
    num_images: int
    num_crops: int
    """M."""
    num_classes: int
    outputs: str
    """What the outputs are, in a few words."""
    labelled_images: int
    bad_images: int
    """Left out, with `--skip-bad`."""
    blocks: int
    """Image blocks committed."""
    blocks_wanted: int
    sampled_blocks: int
    """Blocks that the figures below were read from, spread evenly."""
    sampled_crops: int
    mean_max_probability: float | None
    mean_ground_truth_probability: float | None
    """None where images have no ground truth."""
    certain_crops: float | None
    """Share of crops with a probability above 0.999: a sharp teacher's labels say little more than `hard`."""
    teacher_seconds: float
    """Seconds of labelling that the ledger records, over all workers."""
    devices: tuple[str, ...]

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def summary(
    labels: LabelSet, *, max_blocks: int = SAMPLED_BLOCKS, map_blocks: MapBlocks = map_in_threads
) -> Summary:
    """Figures of a label set; probabilities from at most `max_blocks` of its image blocks."""
    blocks = labels.blocks
    sample = at_most(blocks, max_blocks)
    with_truth = (
        bool(np.all(labels.ground_truth[~labels.store.free] >= 0)) and labels.outputs_are_classes
    )
    sums = np.zeros(4)
    for found in map_blocks(partial(_sums, labels, with_truth), sample):
        sums += found
    crops = int(sums[0])
    shards = labels.store.catalogue.ledger.labelling(f"labels/{labels.name}")
    return Summary(
        label_set=labels.name,
        teacher=labels.row.teacher,
        codec=in_short(labels.row.codec),
        num_images=labels.store.num_images,
        num_crops=labels.num_crops,
        num_classes=labels.num_classes,
        outputs=labels.outputs.describe(labels.num_classes),
        labelled_images=int(np.count_nonzero(labels.present)),
        bad_images=int(np.count_nonzero(labels.store.bad & ~labels.store.free)),
        blocks=len(blocks),
        blocks_wanted=labels.layout.num_blocks,
        sampled_blocks=len(sample),
        sampled_crops=crops,
        mean_max_probability=float(sums[1] / crops) if crops else None,
        mean_ground_truth_probability=float(sums[2] / crops) if crops and with_truth else None,
        certain_crops=float(sums[3] / crops) if crops else None,
        teacher_seconds=float(sum(seconds for seconds, _ in shards)),
        devices=tuple(sorted({device for _, device in shards if device})),
    )


def _sums(labels: LabelSet, with_truth: bool, block: int) -> NDArray[np.float64]:
    """Labelled crops, and over them: largest probability, ground truth's probability, crops above 0.999."""
    sums = np.zeros(4)
    for largest in block_slabs(labels, "max_probability", block):
        missing = int(np.count_nonzero(np.isnan(largest)))
        sums[0] += largest.size - missing
        sums[1] += _total(largest, missing)
        sums[3] += np.count_nonzero(largest > np.float32(0.999))
    if with_truth:
        for truth in block_slabs(labels, "ground_truth_probability", block):
            sums[2] += _total(truth, int(np.count_nonzero(np.isnan(truth))))
    return sums


def _total(values: NDArray[np.float32], missing: int) -> float:
    # nansum copies what it sums
    summed = np.nansum if missing else np.sum
    return float(summed(values, dtype=np.float64))
