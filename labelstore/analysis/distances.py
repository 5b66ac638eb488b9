"""How far kinds of labels are from each other: mutual cross-entropy, class by class (FKD 3.2, Eq. 2, Fig. 3).

    D(A -> B) = mean over crops of  -sum_c P_B(c) log P_A(c)

A kind is the one-hot ground truth ("ground truth", only as B: the logarithm of its zeros says nothing) or a label
set: of another teacher, another codec, or the label map. Probabilities below a floor count as the floor, which
matters for codecs that make classes zero (`hard`, `mr`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_sample import share_of_blocks
from labelstore.blocks.shipping import MapBlocks
from labelstore.blocks.slabs import slabs
from labelstore.blocks.threads import map_in_threads
from labelstore.codecs.base import SparseLabels
from labelstore.errors import UsageError
from labelstore.store.one_temperature import common_temperature
from labelstore.store.outputs import check_same_outputs

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.store import LabelSet

GROUND_TRUTH = "ground truth"
FLOOR = 1e-8
"""Smallest probability under the logarithm: a missed class costs at most 18.4 nats."""
Float = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Mean cross-entropies between kinds of labels of the same crops, in nats."""

    kinds: tuple[str, ...]
    """Label sets, and "ground truth" where every image has one."""
    class_names: tuple[str, ...]
    class_titles: tuple[str, ...]
    """What the classes are, in words for people."""
    crops: NDArray[np.int64]
    """(classes,) crops compared."""
    sums: dict[tuple[str, str], NDArray[np.float64]]
    """(A, B) -> (classes,) sum over crops of the cross-entropy D(A -> B)."""
    disagreeing: dict[tuple[str, str], NDArray[np.int64]]
    """(A, B) -> (classes,) crops whose most probable class differs."""

    def mean(self, a: str, b: str) -> float:
        """D(A -> B) over all crops."""
        return float(self.sums[a, b].sum() / max(self.crops.sum(), 1))

    def disagreement(self, a: str, b: str) -> float:
        """Share of all crops whose most probable class differs."""
        return float(self.disagreeing[a, b].sum() / max(self.crops.sum(), 1))

    def by_class(self) -> pd.DataFrame:
        """One row per class and pair: class, class_name, a, b, crops, distance, disagreement (FKD Fig. 3 draws the
        first 50)."""
        import pandas as pd

        seen = self.crops > 0
        frames = [
            pd.DataFrame(
                {
                    "class": np.array(self.class_names, object)[seen],
                    "class_name": np.array(self.class_titles, object)[seen],
                    "a": a,
                    "b": b,
                    "crops": self.crops[seen],
                    "distance": sums[seen] / self.crops[seen],
                    "disagreement": self.disagreeing[a, b][seen] / self.crops[seen],
                }
            )
            for (a, b), sums in self.sums.items()
        ]
        return pd.concat(frames, ignore_index=True)

    def to_record(self) -> dict[str, Any]:
        """JSON values: one entry per pair."""
        return {
            "kinds": list(self.kinds),
            "crops": int(self.crops.sum()),
            "pairs": [
                {
                    "a": a,
                    "b": b,
                    "distance": self.mean(a, b),
                    "disagreement": self.disagreement(a, b),
                }
                for a, b in self.sums
            ],
        }


def distances(
    label_sets: Sequence[LabelSet],
    *,
    share: float = 1.0,
    floor: float = FLOOR,
    map_blocks: MapBlocks = map_in_threads,
) -> Distances:
    """Cross-entropies between all label sets and the ground truth, over crops that all of them have.

    All are brought to one temperature (`common_temperature`). The label sets must be of one plan and have the same
    outputs (UsageError). With a `share` below 1, so many of the image blocks are walked, spread evenly. An image
    without ground truth among the classes is left out.
    """
    if not label_sets:
        raise UsageError("no label set to measure: make one with `labelstore.generate`")
    first = label_sets[0]
    given = [labels.name for labels in label_sets]
    if twice := [name for name in dict.fromkeys(given) if given.count(name) > 1]:
        raise UsageError(
            f"label set {twice[0]} is given {given.count(twice[0])} times: name each once"
        )
    for other in label_sets[1:]:
        if (other.plan.name, other.num_classes) != (first.plan.name, first.num_classes):
            raise UsageError(
                f"label sets {first.name} ({first.num_classes} classes, plan {first.plan.name}) and {other.name} "
                f"({other.num_classes} classes, plan {other.plan.name}): distances compare equal crops and classes"
            )
        check_same_outputs(first, other)
    if not 0 < floor < 1:
        raise UsageError(f"floor {floor}: give a probability between 0 and 1")
    common = sorted(set.intersection(*(set(labels.blocks) for labels in label_sets)))
    walked = share_of_blocks(common, share)
    classes = first.store.class_names
    with_truth = first.outputs_are_classes and bool((first.ground_truth >= 0).any())
    names = [labels.name for labels in label_sets]
    pairs = [(a, b) for a, b in product(names, names) if a != b] + [
        (a, GROUND_TRUTH) for a in names if with_truth
    ]
    crops = np.zeros(len(classes) + 1, np.int64)
    sums = {pair: np.zeros(len(classes) + 1) for pair in pairs}
    disagreeing = {pair: np.zeros(len(classes) + 1, np.int64) for pair in pairs}
    for part in map_blocks(partial(_measure_block, label_sets, pairs, floor), walked):
        crops += part.pop("crops")
        for pair, (distance, differs) in part.items():
            sums[pair] += distance
            disagreeing[pair] += differs
    return Distances(
        kinds=(*names, *((GROUND_TRUTH,) if with_truth else ())),
        class_names=(*classes, ""),
        class_titles=(*first.class_titles, ""),
        crops=crops,
        sums=sums,
        disagreeing=disagreeing,
    )


def _measure_block(
    label_sets: Sequence[LabelSet], pairs: Sequence[tuple[str, str]], floor: float, block: int
) -> dict[Any, Any]:
    first = label_sets[0]
    rows = list(first.block_rows(block))
    truth = first.ground_truth[rows].astype(np.int64)
    with_truth = any(b == GROUND_TRUTH for _, b in pairs)
    usable = np.logical_and.reduce([labels.present[rows] for labels in label_sets])
    if with_truth:
        usable &= truth >= 0
    own = truth[usable]
    target = first.true_output[rows][usable].astype(np.int64)[:, None] if with_truth else None
    classes = len(first.store.class_names) + 1
    found: dict[Any, Any] = {"crops": np.zeros(classes, np.int64)}
    temperature = common_temperature(label_sets)
    narrowest = max((slabs(labels) for labels in label_sets), key=len)
    for columns in narrowest:
        read = {
            labels.name: _Read(labels, block, columns, usable, floor, temperature)
            for labels in label_sets
        }
        width = next(iter(read.values())).top1.shape[1]
        np.add.at(found["crops"], own, width)
        for a, b in pairs:
            if target is not None and b == GROUND_TRUTH:
                crossed = -read[a].log_of(target[..., None])[..., 0]
                differs = read[a].top1 != target
            else:
                crossed, differs = read[b].crossed(read[a]), read[a].top1 != read[b].top1
            sums, counts = found.setdefault(
                (a, b), (np.zeros(classes), np.zeros(classes, np.int64))
            )
            np.add.at(sums, own, crossed.sum(axis=1, dtype=np.float64))
            np.add.at(counts, own, differs.sum(axis=1))
    return found


class _Read:
    """Labels of one slab, sparse or dense, with their logarithms."""

    def __init__(
        self,
        labels: LabelSet,
        block: int,
        columns: range | None,
        usable: NDArray[np.bool_],
        floor: float,
        temperature: float,
    ) -> None:
        self.floor = np.float32(floor)
        self.num_classes = labels.num_classes
        self.sparse: SparseLabels | None = None
        if labels.codec.kept(labels.num_classes) is None:
            self.dense = labels.dense(block, columns, temperature)[usable]
            self.log_dense = np.log(np.maximum(self.dense, self.floor))
            self.top1 = self.dense.argmax(axis=-1)
            return
        whole = labels.sparse(block, columns, temperature)
        self.sparse = SparseLabels(
            class_ids=whole.class_ids[usable], probs=whole.probs[usable], rest=whole.rest[usable]
        )
        self.log_probs = np.log(np.maximum(self.sparse.probs, self.floor))
        self.log_rest = np.log(np.maximum(self.sparse.rest, self.floor))
        self.top1 = self.sparse.class_ids[..., 0].astype(np.int64)

    def log_of(self, class_ids: NDArray[Any]) -> Float:
        """log P of classes (n, m or 1, k): (n, m, k)."""
        shape = (*self.top1.shape, class_ids.shape[-1])
        ids = np.broadcast_to(class_ids, shape)
        if self.sparse is None:
            return np.take_along_axis(self.log_dense, ids.astype(np.int64), axis=-1)
        found = np.broadcast_to(self.log_rest[..., None], shape).copy()
        for rank in range(self.sparse.probs.shape[-1]):
            same = self.sparse.class_ids[..., rank, None] == ids
            np.copyto(found, self.log_probs[..., rank, None], where=same)
        return found

    def total_log(self) -> Float:
        """Sum of log P over all classes (n, m)."""
        if self.sparse is None:
            total: Float = self.log_dense.sum(axis=-1)
            return total
        others = np.float32(self.num_classes - self.sparse.probs.shape[-1])
        summed: Float = self.log_probs.sum(axis=-1) + others * self.log_rest
        return summed

    def crossed(self, other: _Read) -> Float:
        """-sum over classes of this label's P times the other's log P: (n, m)."""
        if self.sparse is None:
            if other.sparse is None:
                both: Float = -(self.dense * other.log_dense).sum(axis=-1)
                return both
            # the other's rest stands for all classes but those that it lists
            listed = np.take_along_axis(
                self.dense, other.sparse.class_ids.astype(np.int64), axis=-1
            )
            rest = np.maximum(self.dense.sum(axis=-1) - listed.sum(axis=-1), 0)
            dense: Float = -((listed * other.log_probs).sum(axis=-1) + rest * other.log_rest)
            return dense
        above = self.sparse.probs - self.sparse.rest[..., None]
        kept = (above * other.log_of(self.sparse.class_ids)).sum(axis=-1)
        crossed: Float = -(kept + self.sparse.rest * other.total_log())
        return crossed
