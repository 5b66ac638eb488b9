"""How far label sets of the same crops are apart: cross-entropy, KL both ways, Jensen-Shannon, top-1 agreement.

Two labels p and q of one crop are compared over the union of the classes that either lists, and the rest as one more
entry that stands for C - S classes. Every logarithm is of max(P, 2^-26), so a probability of zero, as in `hard` and
`mr`, costs at most 18 nats:

    H(p, q)   = -sum_c p_c log q_c                          cross-entropy (FKD 3.2, Eq. 2, Fig. 3)
    KL(p || q) = H(p, q) - H(p, p)                          what a student's loss grows by if it learns q and p is right
    JS(p, q)  = [KL(p || m) + KL(q || m)] / 2,  m = (p + q) / 2,  0 to log 2

`labelstore variants`, `quality`, `stats --disagreement` and the report page all take their figures from `compare`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, at_most, map_in_threads, share_of_blocks
from labelstore.blocks.crop_slab import slabs
from labelstore.codecs import SparseLabels, densify, over_union
from labelstore.errors import UsageError
from labelstore.store.label_outputs import check_same_outputs, common_temperature

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.store import LabelSet, Store

SMALLEST = 2.0**-26
"""Smallest probability under a logarithm: below float16's half step."""
GROUND_TRUTH = "ground truth"
MEASURES = ("top1_agreement", "cross_entropy", "cross_entropy_reversed", "kl", "kl_reversed", "js")
"""What is summed for each pair. Reversed: of (second, first)."""
BINS_PER_OCTAVE = 64
"""Resolution of the percentile of KL: 1.1 %."""
_OCTAVES = (-60, 8)
"""Binary logarithms of KL in nats that the percentile tells apart."""
_NUM_BINS = (_OCTAVES[1] - _OCTAVES[0]) * BINS_PER_OCTAVE + 1
PIECE = 1 << 18
"""Probabilities compared at once: 2 MB as float64."""

Pair: TypeAlias = tuple[str, str]
Labels: TypeAlias = SparseLabels | NDArray[np.float32]
"""Labels of one slab: sparse, or dense (..., C)."""


@dataclass(kw_only=True)
class _Sums:
    """What is known of one pair after some image blocks."""

    sums: NDArray[np.float64]
    """(measures, classes + 1), by class of the image; the last class is "no ground truth"."""
    kl_bins: NDArray[np.int64]
    """Crops by KL(first || second): below 2^-60 nats, then 64 bins in every octave."""
    worst: NDArray[np.float64]
    """(2,) largest KL(first || second) and JS."""

    @classmethod
    def zeros(cls, classes: int) -> _Sums:
        return cls(
            sums=np.zeros((len(MEASURES), classes)),
            kl_bins=np.zeros(_NUM_BINS, np.int64),
            worst=np.zeros(2),
        )

    def of(self, measure: str) -> NDArray[np.float64]:
        """(classes + 1,) sums of one measure."""
        row: NDArray[np.float64] = self.sums[MEASURES.index(measure)]
        return row

    def add(self, other: _Sums) -> None:
        self.sums += other.sums
        self.kl_bins += other.kl_bins
        self.worst = np.maximum(self.worst, other.worst)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Two label sets, over the crops that were compared. Means over crops, in nats; None where there is no crop."""

    label_sets: tuple[str, str]
    teachers: tuple[str, str]
    num_crops: int
    top1_agreement: float | None
    """Share of crops whose most probable class is the same."""
    kl: float | None
    """KL(first || second)."""
    kl_reversed: float | None
    """KL(second || first)."""
    js: float | None
    """Jensen-Shannon divergence, at most log 2 = 0.693; None where it was left out."""
    js_worst: float | None
    """The divergence of the crop where it is largest."""
    kl_p99: float | None
    """99th percentile of KL(first || second) over the crops, to 1.1 %."""
    kl_worst: float | None
    """KL of the crop where it is largest."""
    cross_entropy: float | None
    """H(first, second)."""
    cross_entropy_reversed: float | None
    """H(second, first)."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Label sets compared with each other and, if asked for, with the ground truth, over crops that all have."""

    kinds: tuple[str, ...]
    """Names of the label sets; last "ground truth", where it was asked for and images have one."""
    teachers: tuple[str, ...]
    """Teachers of the label sets."""
    class_names: tuple[str, ...]
    class_titles: tuple[str, ...]
    """What the classes are, in words for people."""
    crops: NDArray[np.int64]
    """(classes + 1,) crops compared, by class of the image."""
    totals: dict[Pair, _Sums]
    """By pair, first before second in `kinds`."""

    @property
    def pairs(self) -> tuple[Distance, ...]:
        """Every two label sets."""
        of = dict(zip(self.kinds, self.teachers, strict=False))
        return tuple(
            self._pair(pair, (of[pair[0]], of[pair[1]]))
            for pair in self.totals
            if GROUND_TRUTH not in pair
        )

    def distance(self, a: str, b: str) -> float:
        """Mean over all crops of H(b, a) = -sum_c P_b(c) log P_a(c): what a student of `a` costs where `b` is right."""
        return float(self._crossed(a, b).sum() / max(self.crops.sum(), 1))

    def disagreement(self, a: str, b: str) -> float:
        """Share of all crops whose most probable class differs."""
        return float(self._differing(a, b).sum() / max(self.crops.sum(), 1))

    def by_class(self) -> pd.DataFrame:
        """One row per class and ordered pair: class, class_name, a, b, crops, distance, disagreement (FKD Fig. 3)."""
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
                    "distance": self._crossed(a, b)[seen] / self.crops[seen],
                    "disagreement": self._differing(a, b)[seen] / self.crops[seen],
                }
            )
            for a, b in self._ordered()
        ]
        return pd.concat(frames, ignore_index=True)

    def to_record(self) -> dict[str, Any]:
        """JSON values: one entry per ordered pair."""
        return {
            "kinds": list(self.kinds),
            "crops": int(self.crops.sum()),
            "pairs": [
                {
                    "a": a,
                    "b": b,
                    "distance": self.distance(a, b),
                    "disagreement": self.disagreement(a, b),
                }
                for a, b in self._ordered()
            ],
        }

    def _ordered(self) -> list[Pair]:
        """(a, b): the ground truth is only b, as the logarithm of its zeros says nothing."""
        names = self.kinds[: len(self.teachers)]
        truth = self.kinds[len(names) :]
        return [pair for pair in product(names, names) if pair[0] != pair[1]] + list(
            product(names, truth)
        )

    def _crossed(self, a: str, b: str) -> NDArray[np.float64]:
        if (a, b) in self.totals:
            return self.totals[a, b].of("cross_entropy_reversed")
        return self.totals[b, a].of("cross_entropy")

    def _differing(self, a: str, b: str) -> NDArray[np.float64]:
        pair = (a, b) if (a, b) in self.totals else (b, a)
        return np.subtract(self.crops, self.totals[pair].of("top1_agreement"))

    def _pair(self, pair: Pair, teachers: tuple[str, str]) -> Distance:
        total, crops = self.totals[pair], int(self.crops.sum())
        means: dict[str, float | None] = dict.fromkeys(
            (*MEASURES, "kl_worst", "js_worst", "kl_p99")
        )
        if crops:
            sums = total.sums.sum(axis=1) / crops
            means |= dict(zip(MEASURES, sums.tolist(), strict=True))
            means["kl_worst"], means["js_worst"] = total.worst.tolist()
            if math.isnan(sums[-1]):
                means["js"] = means["js_worst"] = None
            at = int(np.searchsorted(np.cumsum(total.kl_bins), 0.99 * crops))
            # the upper edge of the bin, so that no crop looks better than it is; the first bin is "none"
            edge = 0.0 if at == 0 else 2.0 ** (_OCTAVES[0] + at / BINS_PER_OCTAVE)
            means["kl_p99"] = min(edge, float(total.worst[0]))
        return Distance(label_sets=pair, teachers=teachers, num_crops=crops, **means)


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """Every two label sets of a store that can be compared, each over the crops that both have."""

    pairs: tuple[Distance, ...]
    refused: tuple[str, ...]
    """Why others cannot be compared."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {"pairs": [pair.to_record() for pair in self.pairs], "refused": list(self.refused)}


def compare(
    label_sets: Sequence[LabelSet],
    *,
    ground_truth: bool = False,
    js: bool = True,
    share: float = 1.0,
    max_blocks: int | None = None,
    map_blocks: MapBlocks = map_in_threads,
) -> Comparison:
    """Compare label sets crop by crop, over the crops that all of them have, in one walk over their labels.

    All are brought to one temperature (`common_temperature`). Of the image blocks a `share` is read, or `max_blocks`,
    spread evenly. With `ground_truth`, the one-hot class of the image is one more label wherever the outputs are
    classes of the data set, and images without one are left out. `js=False` leaves out the Jensen-Shannon divergence,
    which takes half of the time where labels are dense.

    UsageError for label sets of different stores, plans, numbers of classes or outputs, and for one given twice.
    """
    if not label_sets:
        raise UsageError("no label set to measure: make one with `labelstore.generate`")
    first = label_sets[0]
    names = [labels.name for labels in label_sets]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UsageError(
            f"label set {twice[0]} is given {names.count(twice[0])} times: name each once"
        )
    for other in label_sets[1:]:
        _check_comparable(first, other)
    with_truth = (
        ground_truth and first.outputs_are_classes and bool((first.ground_truth >= 0).any())
    )
    kinds = (*names, *((GROUND_TRUTH,) if with_truth else ()))
    blocks: Sequence[int] = sorted(set.intersection(*(set(labels.blocks) for labels in label_sets)))
    blocks = share_of_blocks(blocks, share) if max_blocks is None else at_most(blocks, max_blocks)
    classes = len(first.store.class_names) + 1
    crops = np.zeros(classes, np.int64)
    totals = {pair: _Sums.zeros(classes) for pair in combinations(kinds, 2)}
    for part, sums in map_blocks(partial(_block, tuple(label_sets), kinds, js), blocks):
        crops += part
        for pair, own in sums.items():
            totals[pair].add(own)
    return Comparison(
        kinds=kinds,
        teachers=tuple(labels.row.teacher for labels in label_sets),
        class_names=(*first.store.class_names, ""),
        class_titles=(*first.class_titles, ""),
        crops=crops,
        totals=totals,
    )


def compare_all(
    store: Store,
    *,
    label_set: str | None = None,
    limit: int | None = None,
    share: float = 1.0,
    max_blocks: int | None = None,
    map_blocks: MapBlocks = map_in_threads,
) -> Comparisons:
    """Compare every two label sets that have labels, or `label_set` with each other one; the first `limit` pairs.

    `share` and `max_blocks` are as in `compare`. UsageError where there are no two label sets.
    """
    names = [name for name in store.label_sets if store.label_set(name).blocks]
    if label_set is not None:
        store.label_set_row(label_set)
    chosen = [pair for pair in combinations(names, 2) if label_set is None or label_set in pair]
    if not chosen:
        raise UsageError(
            f"{store.path} has labels of {', '.join(names) or 'no label set'}: a comparison needs two label sets on "
            "one plan; make another with `labelstore.generate()`"
        )
    share_of_blocks((), share)  # a share that is none is refused for all pairs at once
    pairs: list[Distance] = []
    refused: list[str] = []
    for both in ([store.label_set(name) for name in pair] for pair in chosen[:limit]):
        try:
            compared = compare(both, share=share, max_blocks=max_blocks, map_blocks=map_blocks)
        except UsageError as error:
            refused.append(str(error))
        else:
            pairs += compared.pairs
    return Comparisons(pairs=tuple(pairs), refused=tuple(refused))


def measures(
    p: NDArray[np.float64], q: NDArray[np.float64], rest: int = 1, *, js: bool = True
) -> NDArray[np.float64]:
    """H(p, q), H(q, p), KL(p || q), KL(q || p) and JS, (5, n) nats, of distributions (n, S).

    The last entry stands for `rest` classes, each of that probability. Without `js` that row is NaN.
    """
    log_p, log_q = _log(p), _log(q)
    log_m = _log((p + q) / 2) if js else None
    if rest != 1:
        counts = np.ones(p.shape[-1])
        counts[-1] = rest
        p, q = p * counts, q * counts
    return _of_entropies(
        -_dot(p, log_q),
        -_dot(q, log_p),
        -_dot(p, log_p),
        -_dot(q, log_q),
        None if log_m is None else -(_dot(p, log_m) + _dot(q, log_m)) / 2,
    )


def _sparse_measures(p: NDArray[np.float64], q: SparseLabels, *, js: bool) -> NDArray[np.float64]:
    """`measures` of dense labels p (n, C) and sparse ones: q has `rest` for all classes but the K that it lists."""
    ids = q.class_ids.astype(np.intp)
    log_p, probs = _log(p), q.probs.astype(np.float64)
    rest = q.rest.astype(np.float64)
    others = p.shape[-1] - ids.shape[-1]
    above = probs - rest[:, None]
    listed = np.take_along_axis(p, ids, axis=-1)
    log_rest = _log(rest)

    def from_q(log: NDArray[np.float64]) -> NDArray[np.float64]:
        crossed = _dot(above, np.take_along_axis(log, ids, axis=-1))
        crossed += rest * log.sum(axis=-1)
        return -crossed

    to_middle = None
    if js:
        middle = (p + rest[:, None]) / 2
        np.put_along_axis(middle, ids, (listed + probs) / 2, axis=-1)
        log_m = _log(middle)
        to_middle = (from_q(log_m) - _dot(p, log_m)) / 2
    unlisted = p.sum(axis=-1) - listed.sum(axis=-1)
    return _of_entropies(
        -(_dot(listed, _log(probs)) + unlisted * log_rest),
        from_q(log_p),
        -_dot(p, log_p),
        -(_dot(probs, _log(probs)) + others * rest * log_rest),
        to_middle,
    )


def _of_entropies(
    h_pq: NDArray[np.float64],
    h_qp: NDArray[np.float64],
    h_pp: NDArray[np.float64],
    h_qq: NDArray[np.float64],
    to_middle: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """The five measures from cross-entropies (n,); `to_middle` is [H(p, m) + H(q, m)] / 2."""
    js = (
        np.full_like(h_pq, np.nan)
        if to_middle is None
        else np.clip(to_middle - (h_pp + h_qq) / 2, 0.0, math.log(2))
    )
    # rounding may leave a little below zero
    kl, kl_reversed = np.maximum(h_pq - h_pp, 0.0), np.maximum(h_qp - h_qq, 0.0)
    return np.stack([h_pq, h_qp, kl, kl_reversed, js])


def _log(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithm: NDArray[np.float64] = np.log(np.maximum(probability, SMALLEST))
    return logarithm


def _dot(p: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    summed: NDArray[np.float64] = np.einsum("ns,ns->n", p, values)
    return summed


def _check_comparable(first: LabelSet, second: LabelSet) -> None:
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


def _block(
    label_sets: Sequence[LabelSet], kinds: tuple[str, ...], js: bool, block: int
) -> tuple[NDArray[np.int64], dict[Pair, _Sums]]:
    """Crops by class, and the sums of every pair, over one image block."""
    first = label_sets[0]
    rows = list(first.block_rows(block))
    classes = len(first.store.class_names) + 1
    temperature = common_temperature(label_sets)
    crops = np.zeros(classes, np.int64)
    totals = {pair: _Sums.zeros(classes) for pair in combinations(kinds, 2)}
    # the widest labels decide how much fits in memory
    for columns in max((slabs(labels) for labels in label_sets), key=len):
        sides = [_read(labels, block, columns, temperature) for labels in label_sets]
        known = np.logical_and.reduce([~np.isnan(_first(side)) for side in sides])
        if GROUND_TRUTH in kinds:
            sides.append(_one_hot(first.true_output[rows], known.shape, sides))
            known &= ~np.isnan(_first(sides[-1]))
        # the image's class, or the last row for none (-1)
        own = np.broadcast_to(first.ground_truth[rows][:, None], known.shape)[known] % classes
        crops += np.bincount(own, minlength=classes)
        sides = [_chosen(side, known) for side in sides]
        for pair, (p, q) in zip(totals, combinations(sides, 2), strict=True):
            _add(totals[pair], p, q, own, first.num_classes, js)
    return crops, totals


def _add(
    total: _Sums, first: Labels, second: Labels, own: NDArray[Any], num_classes: int, js: bool
) -> None:
    """Add crops (n,) of image classes `own` to the sums of a pair."""
    classes = total.sums.shape[1]
    width = sum(
        side.class_ids.shape[-1] if isinstance(side, SparseLabels) else num_classes
        for side in (first, second)
    )
    step = max(1, PIECE // min(width, num_classes))
    for at in range(0, len(own), step):
        p, q = (_chosen(side, slice(at, at + step)) for side in (first, second))
        values = np.vstack([_top1(p) == _top1(q), _measured(p, q, num_classes, js)])
        for sums, row in zip(total.sums, values, strict=True):
            sums += np.bincount(own[at : at + step], weights=row, minlength=classes)
        kl = values[MEASURES.index("kl")]
        octaves = np.log2(np.maximum(kl, 2.0 ** _OCTAVES[0])) - _OCTAVES[0]
        bins = np.ceil(octaves * BINS_PER_OCTAVE).astype(np.int64)
        total.kl_bins += np.bincount(np.minimum(bins, _NUM_BINS - 1), minlength=_NUM_BINS)
        total.worst = np.maximum(total.worst, [kl.max(), values[MEASURES.index("js")].max()])


def _read(labels: LabelSet, block: int, columns: range | None, temperature: float) -> Labels:
    if labels.codec.kept(labels.num_classes) is None:
        return labels.dense(block, columns, temperature)
    return labels.sparse(block, columns, temperature)


def _one_hot(truth: NDArray[Any], shape: tuple[int, int], sides: Sequence[Labels]) -> SparseLabels:
    """The ground truth (n,) as labels (n, m, 1), NaN where there is none."""
    dtype = next((s.class_ids.dtype for s in sides if isinstance(s, SparseLabels)), np.uint32)
    is_class = truth >= 0
    one = np.where(is_class, np.float32(1), np.float32(np.nan))
    ids = np.where(is_class, truth, 0).astype(dtype)
    return SparseLabels(
        class_ids=np.broadcast_to(ids[:, None, None], (*shape, 1)),
        probs=np.broadcast_to(one[:, None, None], (*shape, 1)),
        rest=np.broadcast_to((one - 1)[:, None], shape),
    )


def _first(labels: Labels) -> NDArray[np.float32]:
    """One probability of each crop: NaN where the crop has no label."""
    return (labels.probs if isinstance(labels, SparseLabels) else labels)[..., 0]


def _chosen(labels: Labels, which: NDArray[np.bool_] | slice) -> Labels:
    if not isinstance(labels, SparseLabels):
        return labels[which]
    return SparseLabels(
        class_ids=labels.class_ids[which], probs=labels.probs[which], rest=labels.rest[which]
    )


def _top1(labels: Labels) -> NDArray[Any]:
    # the first class that is listed is the most probable one
    top: NDArray[Any] = (
        labels.class_ids[..., 0] if isinstance(labels, SparseLabels) else labels.argmax(axis=-1)
    )
    return top


def _measured(first: Labels, second: Labels, num_classes: int, js: bool) -> NDArray[np.float64]:
    """`measures` of labels of n crops: over the union of the classes, so that sparse ones stay sparse."""
    if isinstance(first, SparseLabels) and isinstance(second, SparseLabels):
        listed = first.class_ids.shape[-1] + second.class_ids.shape[-1]
        if listed < num_classes:
            _, probs = over_union([first, second], num_classes)
            p, q = (
                np.concatenate([own, labels.rest[..., None]], axis=-1).astype(np.float64)
                for own, labels in zip(probs, (first, second), strict=True)
            )
            return measures(p, q, num_classes - listed, js=js)
        second = densify(second, num_classes)
    if isinstance(first, SparseLabels):
        assert not isinstance(second, SparseLabels)
        swapped = _sparse_measures(second.astype(np.float64), first, js=js)
        return swapped[[1, 0, 3, 2, 4]]
    if isinstance(second, SparseLabels):
        return _sparse_measures(first.astype(np.float64), second, js=js)
    return measures(first.astype(np.float64), second.astype(np.float64), js=js)
