"""A label set measured crop by crop in one walk: entropy, kept mass, agreement with the ground truth, boxes, flips.

Every figure is exact over the walked image blocks, which are all committed ones unless a share of them is asked for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from math import log
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, map_in_threads, share_of_blocks
from labelstore.blocks.columns import OF_GROUND_TRUTH
from labelstore.blocks.crop_slab import CropSlab, slabs

if TYPE_CHECKING:
    from labelstore.store import LabelSet

Sums: TypeAlias = dict[str, NDArray[np.float64]]

MEASURES = (
    "max_probability", "ground_truth_probability", "entropy", "kept_mass",
    "area", "aspect", "centre_y", "centre_x",
)  # fmt: skip
"""Columns with a mean, a spread and a histogram."""
SHARES = ("agrees", "agrees_top5", "flip")
"""Columns with a share."""
BINS = 50
_N, _SUM, _SQUARES, _LEAST, _MOST, _COUNTS = 0, 1, 2, 3, 4, 5


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One column over all crops where it is known."""

    name: str
    crops: int
    mean: float | None
    """None where no crop has a value."""
    std: float | None
    least: float | None
    most: float | None
    edges: tuple[float, ...]
    """Edges of the histogram: 50 bins of equal width; values outside count in the first and the last."""
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ClassProfile:
    """The labels of one class's images."""

    name: str
    """Class of the ground truth; empty for images without one."""
    title: str
    """What that class is, in words for people."""
    images: int
    crops: int
    max_probability: float
    """Mean over the crops, and so are the next two."""
    ground_truth_probability: float | None
    entropy: float
    area: float
    top1: float | None
    """Share of crops whose class by the teacher is the ground truth; None where there is no ground truth."""
    top5: float | None
    """Share of crops with the ground truth among the teacher's first five; None where fewer are kept."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A label set measured crop by crop."""

    label_set: str
    teacher: str
    temperature: float
    """Temperature of the softmax that made the labels."""
    blocks: int
    """Image blocks walked."""
    blocks_committed: int
    images: int
    crops: int
    measures: tuple[Measure, ...]
    top1: float | None
    """Share of crops whose class by the teacher is the ground truth; None where the outputs are no classes."""
    top5: float | None
    flip_rate: float | None
    sizes: dict[str, tuple[int, int, int]]
    """Smallest, median and largest height and width of the walked images, in pixels."""
    classes: tuple[ClassProfile, ...]

    def measure(self, name: str) -> Measure:
        """One measure by its column's name."""
        return next(measure for measure in self.measures if measure.name == name)

    def to_record(self, *, per_class: bool = True) -> dict[str, Any]:
        """JSON values."""
        record = asdict(self)
        if not per_class:
            del record["classes"]
        return record


def profile(
    labels: LabelSet, *, share: float = 1.0, map_blocks: MapBlocks = map_in_threads
) -> Profile:
    """Measures of all committed crops, or of a `share` of the image blocks, spread evenly. One walk."""
    blocks = labels.blocks
    walked = share_of_blocks(blocks, share)
    kept = labels.listed
    shares: tuple[str, ...] = (
        SHARES if kept is None or kept >= min(5, labels.num_classes) else ("agrees", "flip")
    )
    measures: tuple[str, ...] = MEASURES
    if not labels.outputs_are_classes:
        measures = tuple(name for name in MEASURES if name not in OF_GROUND_TRUTH)
        shares = tuple(name for name in shares if name not in OF_GROUND_TRUTH)
    edges = {name: np.linspace(*_range(name, labels.num_classes), BINS + 1) for name in measures}
    total: Sums = {}
    for found in map_blocks(partial(_sums, labels, edges, shares), walked):
        _add(total, found)
    if not total:
        total = _zeros(labels, shares)
    images = [row for block in walked for row in labels.block_rows(block) if labels.present[row]]
    return Profile(
        label_set=labels.name,
        teacher=labels.row.teacher,
        temperature=labels.row.temperature,
        blocks=len(walked),
        blocks_committed=len(blocks),
        images=len(images),
        crops=int(total["crops"].sum()),
        measures=tuple(_measure(name, total[f"all/{name}"], edges[name]) for name in measures),
        top1=_share(total, "agrees"),
        top5=_share(total, "agrees_top5"),
        flip_rate=_share(total, "flip"),
        sizes={
            name: _spread(labels.store.image_columns[name][images]) for name in ("height", "width")
        },
        classes=_classes(labels, total),
    )


def _sums(
    labels: LabelSet, edges: dict[str, NDArray[np.float64]], shares: tuple[str, ...], block: int
) -> Sums:
    sums = _zeros(labels, shares)
    # -1, no ground truth, is the last row of every table by class
    truth = labels.ground_truth[list(labels.block_rows(block))]
    for columns in slabs(labels):
        slab = CropSlab(labels, block, columns, wanted=(*edges, *shares))
        present = slab.present
        own = truth[present]
        np.add.at(sums["crops"], own, slab.shape[1])
        for name, own_edges in edges.items():
            values = np.asarray(slab[name])[present]
            known = ~np.isnan(values)
            summed = np.where(known, values, 0).astype(np.float64)
            np.add.at(sums[f"class/{name}"], own, summed.sum(axis=1))
            np.add.at(sums[f"known/{name}"], own, known.sum(axis=1))
            _add(sums, {f"all/{name}": _moments(values[known], summed, own_edges)})
        for name in shares:
            np.add.at(sums[f"class/{name}"], own, np.asarray(slab[name])[present].sum(axis=1))
    np.add.at(sums["images"], truth[labels.present[list(labels.block_rows(block))]], 1)
    return sums


def _zeros(labels: LabelSet, shares: tuple[str, ...]) -> Sums:
    classes = len(labels.store.class_names) + 1
    names = ["crops", "images", *(f"class/{name}" for name in (*MEASURES, *shares))]
    names += [f"known/{name}" for name in MEASURES]
    sums = {name: np.zeros(classes) for name in names}
    empty = np.zeros(_COUNTS + BINS)
    empty[_LEAST], empty[_MOST] = np.inf, -np.inf
    return sums | {f"all/{name}": empty.copy() for name in MEASURES}


def _moments(
    values: NDArray[np.float32], summed: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(5 + bins,): number, sum, sum of squares, least, most, counts."""
    moments = np.zeros(_COUNTS + BINS)
    moments[_LEAST], moments[_MOST] = np.inf, -np.inf
    if values.size:
        moments[:_COUNTS] = (
            values.size,
            summed.sum(),
            np.vdot(summed, summed),
            values.min(),
            values.max(),
        )
        inside = np.clip(values, edges[0], edges[-1])
        moments[_COUNTS:] = np.histogram(inside, BINS, (float(edges[0]), float(edges[-1])))[0]
    return moments


def _add(total: Sums, sums: Sums) -> None:
    for name, values in sums.items():
        if name not in total:
            total[name] = values
            continue
        joined = total[name] + values
        if name.startswith("all/"):
            joined[_LEAST] = min(total[name][_LEAST], values[_LEAST])
            joined[_MOST] = max(total[name][_MOST], values[_MOST])
        total[name] = joined


def _measure(name: str, sums: NDArray[np.float64], edges: NDArray[np.float64]) -> Measure:
    number = int(sums[_N])
    mean = sums[_SUM] / number if number else None
    variance = None if mean is None else max(sums[_SQUARES] / number - mean**2, 0)
    return Measure(
        name=name,
        crops=number,
        mean=None if mean is None else float(mean),
        std=None if variance is None else float(variance) ** 0.5,
        least=float(sums[_LEAST]) if number else None,
        most=float(sums[_MOST]) if number else None,
        edges=tuple(edges.tolist()),
        counts=tuple(sums[_COUNTS:].astype(np.int64).tolist()),
    )


def _share(total: Sums, name: str) -> float | None:
    """Share of the crops; of those whose image has a ground truth, where it is about that."""
    if f"class/{name}" not in total:
        return None
    rows = slice(None) if name == "flip" else slice(-1)
    crops = total["crops"][rows].sum()
    return float(total[f"class/{name}"][rows].sum() / crops) if crops else None


def _classes(labels: LabelSet, total: Sums) -> tuple[ClassProfile, ...]:
    names, titles = (*labels.store.class_names, ""), (*labels.class_titles, "")

    def mean(name: str, row: int) -> float | None:
        number = total[f"known/{name}"][row]
        return float(total[f"class/{name}"][row] / number) if number else None

    def share(name: str, row: int) -> float | None:
        if f"class/{name}" not in total or row == len(names) - 1:
            return None
        return float(total[f"class/{name}"][row] / total["crops"][row])

    return tuple(
        ClassProfile(
            name=name,
            title=titles[row],
            images=int(total["images"][row]),
            crops=int(total["crops"][row]),
            max_probability=mean("max_probability", row) or 0.0,
            ground_truth_probability=mean("ground_truth_probability", row),
            entropy=mean("entropy", row) or 0.0,
            area=mean("area", row) or 0.0,
            top1=share("agrees", row),
            top5=share("agrees_top5", row),
        )
        for row, name in enumerate(names)
        if total["crops"][row]
    )


def _range(name: str, num_classes: int) -> tuple[float, float]:
    if name == "entropy":
        return 0.0, log(max(num_classes, 2))
    return (0.0, 2.0) if name == "aspect" else (0.0, 1.0)


def _spread(values: NDArray[Any]) -> tuple[int, int, int]:
    if not len(values):
        return (0, 0, 0)
    return int(values.min()), int(np.median(values)), int(values.max())
