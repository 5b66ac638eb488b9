"""How far two teachers disagree about the same crops: KL both ways, Jensen-Shannon divergence, top-1 agreement.

Labels are compared over the union of the classes that either lists, plus the rest, without becoming dense:

    KL(p || q) = sum_k p_k log(p_k / q_k) + (C - S) r_p log(r_p / r_q)        S classes in the union
    JS(p, q)   = [KL(p || m) + KL(q || m)] / 2,   m = (p + q) / 2,            0 to log 2

A probability of zero (hard and mr labels have such, float16 too) counts as 2^-26 where KL divides by it, so that KL is
at most 18 nats; JS needs no floor.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_sample import at_most, share_of_blocks
from labelstore.blocks.shipping import MapBlocks
from labelstore.blocks.slabs import slabs
from labelstore.blocks.threads import map_in_threads
from labelstore.codecs import SparseLabels, densify, over_union
from labelstore.errors import UsageError
from labelstore.store.one_temperature import common_temperature
from labelstore.store.outputs import check_same_outputs

if TYPE_CHECKING:
    from labelstore.store import LabelSet, Store

SMALLEST = 2.0**-26
"""What a probability of zero counts as in KL: below float16's half step."""


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """Two label sets of one crop plan, compared over the crops that both label. Divergences are means, in nats."""

    label_sets: tuple[str, str]
    teachers: tuple[str, str]
    num_crops: int
    """Crops compared."""
    top1_agreement: float | None
    """Share of crops whose most probable class is the same."""
    kl: float | None
    """KL(first || second)."""
    kl_reversed: float | None
    """KL(second || first)."""
    js: float | None
    """Jensen-Shannon divergence, at most 0.693."""
    js_worst: float | None
    """Of the crop where it is largest."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def disagreement(
    first: LabelSet,
    second: LabelSet,
    *,
    temperature: float | None = None,
    max_blocks: int | None = None,
    map_blocks: MapBlocks = map_in_threads,
) -> Disagreement:
    """Compare two label sets crop by crop, over all image blocks that both have or `max_blocks` spread evenly.

    Both are brought to `temperature`; None is `common_temperature`.
    UsageError for label sets of different stores, plans or numbers of classes.
    """
    if first.store.uuid != second.store.uuid or first.plan.name != second.plan.name:
        raise UsageError(
            f"label sets {first.name} and {second.name} are not on one crop plan: their crops are different ones"
        )
    if first.num_classes != second.num_classes:
        raise UsageError(
            f"label set {first.name} has {first.num_classes} classes and {second.name} {second.num_classes}: "
            "they cannot be compared"
        )
    check_same_outputs(first, second)
    if temperature is None:
        temperature = common_temperature([first, second])
    blocks = sorted(set(first.blocks) & set(second.blocks))
    if max_blocks is not None:
        blocks = list(at_most(blocks, max_blocks))
    sums, worst = np.zeros(5), 0.0
    for found, largest in map_blocks(partial(_block, first, second, temperature), blocks):
        sums += found
        worst = max(worst, largest)
    crops = int(sums[0])
    means = [float(total / crops) if crops else None for total in sums[1:]]
    return Disagreement(
        label_sets=(first.name, second.name),
        teachers=(first.row.teacher, second.row.teacher),
        num_crops=crops,
        top1_agreement=means[0],
        kl=means[1],
        kl_reversed=means[2],
        js=means[3],
        js_worst=worst if crops else None,
    )


@dataclass(frozen=True, kw_only=True)
class Disagreements:
    """Every two label sets of a store that can be compared."""

    pairs: tuple[Disagreement, ...]
    refused: tuple[str, ...]
    """Why others cannot be."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {"pairs": [pair.to_record() for pair in self.pairs], "refused": list(self.refused)}


def disagreements(
    store: Store,
    *,
    label_set: str | None = None,
    limit: int | None = None,
    share: float = 1.0,
    max_blocks: int | None = None,
    map_blocks: MapBlocks = map_in_threads,
) -> Disagreements:
    """Compare every two label sets that have labels, or `label_set` with each other one; the first `limit` pairs.

    Of the image blocks a `share`, or `max_blocks`, spread evenly. UsageError where there are no two label sets.
    """
    names = [name for name in store.label_sets if store.label_set(name).blocks]
    if label_set is not None:
        store.label_set_row(label_set)
    chosen = [pair for pair in combinations(names, 2) if label_set is None or label_set in pair]
    if not chosen:
        raise UsageError(
            f"{store.path} has labels of {', '.join(names) or 'no label set'}: a comparison needs two label sets on "
            "one plan; make another with `labelstore.generate(store, ...)`"
        )
    pairs, refused = [], []
    for first, second in (map(store.label_set, pair) for pair in chosen[:limit]):
        common = sorted(set(first.blocks) & set(second.blocks))
        most = len(share_of_blocks(common, share)) if max_blocks is None else max_blocks
        try:
            pairs.append(disagreement(first, second, max_blocks=most, map_blocks=map_blocks))
        except UsageError as error:
            refused.append(str(error))
    return Disagreements(pairs=tuple(pairs), refused=tuple(refused))


def divergences(
    p: NDArray[np.float64], q: NDArray[np.float64], weights: NDArray[np.float64] | float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """KL(p || q), KL(q || p) and JS of distributions (..., S), each entry standing for `weights` (S,) classes."""
    middle = (p + q) / 2
    js = (_kl(p, middle, weights, 0.0) + _kl(q, middle, weights, 0.0)) / 2
    return (
        _kl(p, q, weights, SMALLEST),
        _kl(q, p, weights, SMALLEST),
        np.clip(js, 0.0, math.log(2)),
    )


def _kl(
    p: NDArray[np.float64],
    q: NDArray[np.float64],
    weights: NDArray[np.float64] | float,
    floor: float,
) -> NDArray[np.float64]:
    log_p = np.log(p, where=p > 0, out=np.zeros_like(p))
    log_q = np.log(np.maximum(q, floor), where=np.maximum(q, floor) > 0, out=np.zeros_like(q))
    total: NDArray[np.float64] = (weights * p * (log_p - log_q)).sum(axis=-1)
    return np.maximum(total, 0.0)  # rounding; NaN stays


def _block(
    first: LabelSet, second: LabelSet, temperature: float, block: int
) -> tuple[NDArray[np.float64], float]:
    """Sums over one image block (crops, agreements, KL, KL reversed, JS) and the largest JS."""
    sums, worst = np.zeros(5), 0.0
    # the wider of the two decides how much fits in memory
    walk = max(slabs(first), slabs(second), key=len)
    for columns in walk:
        p, q, weights = _side_by_side(first, second, block, columns, temperature)
        there = ~(np.isnan(p[..., 0]) | np.isnan(q[..., 0]))
        exact_p, exact_q = p[there].astype(np.float64), q[there].astype(np.float64)
        if not len(exact_p):
            continue
        kl, backwards, js = divergences(exact_p, exact_q, weights)
        agree = np.count_nonzero(exact_p.argmax(axis=-1) == exact_q.argmax(axis=-1))
        sums += [len(exact_p), agree, kl.sum(), backwards.sum(), js.sum()]
        worst = max(worst, float(js.max()))
    return sums, worst


def _side_by_side(
    first: LabelSet, second: LabelSet, block: int, columns: range | None, temperature: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64] | float]:
    """Probabilities (n, m, S) of both over the same classes, and how many classes each entry stands for."""
    num_classes = first.num_classes
    both = [
        labels.dense(block, columns, temperature)
        if labels.listed is None
        else labels.sparse(block, columns, temperature)
        for labels in (first, second)
    ]
    sparse = [labels for labels in both if isinstance(labels, SparseLabels)]
    listed = sum(labels.class_ids.shape[-1] for labels in sparse)
    if len(sparse) < 2 or listed >= num_classes:
        p, q = (
            densify(labels, num_classes) if isinstance(labels, SparseLabels) else labels
            for labels in both
        )
        return p, q, 1.0
    _, found = over_union(sparse, num_classes)
    p, q = (
        np.concatenate([probs, labels.rest[..., None]], axis=-1)
        for probs, labels in zip(found, sparse, strict=True)
    )
    weights = np.ones(listed + 1)
    weights[-1] = num_classes - listed
    return p, q, weights
