"""How much the labels of an image's crops scatter, and how many crops per image a byte budget buys.

The labels p_1 ... p_M of an image's crops have mean p and covariance S. A student that sees M stored labels again and
again learns their mean, which lies

    E |mean of M labels - mean of all labels|^2 = trace(S) / M

away from what it would learn of ever new crops: the local semantic drift of Cui et al. (2025, arXiv 2512.15647). The
trace is measured without bias (over M - 1, as their release does), from sums over an image's crops alone:

    trace(S) = (sum_m |p_m|^2 - |sum_m p_m|^2 / M) / (M - 1)

For a sparse label with `rest` r at every class and excesses e_k above it, |p|^2 = C r^2 + 2 r sum e + sum e^2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.analysis.codec_sizes import codec_table
from labelstore.analysis.disk import storage
from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.blocks.crop_slab import slabs
from labelstore.codecs import is_map
from labelstore.codecs.base import SparseLabels
from labelstore.errors import UsageError

if TYPE_CHECKING:
    from labelstore.store import LabelSet

COUNTS = tuple(1 << power for power in range(10))
"""Crops per image that are listed, beside the store's own number."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What M stored crops per image come to."""

    num_crops: int
    """M."""
    drift: float
    """trace(S) / M, mean over the images."""
    bytes: int | None
    """Labels, boxes and flips of all images, at the label set's bytes per crop; None before any are committed."""


@dataclass(frozen=True, kw_only=True)
class Bought:
    """What the budget buys in one form of labels."""

    form: str
    """The label set itself, or a codec and dtype as in FKD Table 2."""
    basis: str
    """measured: bytes of the label set on disk; sample or raw: as `codec_table` predicts them."""
    bytes_per_crop: float
    """Label, box and flip."""
    num_crops: int
    """Crops per image; 0 where not even one of each fits."""
    drift: float | None
    """With that many; None with none. Of these labels, whatever the form loses."""


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """How an image's labels scatter in one label set, and what a budget buys."""

    label_set: str
    temperature: float
    """T of the labels that were compared."""
    num_images: int
    """Images with two labels or more, which are all that can scatter."""
    num_crops: int
    """M of the store."""
    trace: float
    """trace(S), mean over the images."""
    median: float
    top_decile: float
    """Of the images, a tenth scatter more."""
    worst: tuple[tuple[str, float], ...]
    """Keys of the images that scatter most, with their traces."""
    drifts: tuple[Drift, ...]
    for_images: int
    """N that bytes are for."""
    budget: int | None
    """Bytes."""
    bought: tuple[Bought, ...] = field(default=())

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        worst = [{"key": key, "trace": trace} for key, trace in self.worst]
        return {**asdict(self), "worst": worst}


def scatter(
    labels: LabelSet,
    *,
    temperature: float | None = None,
    budget: int | None = None,
    for_images: int | None = None,
    worst: int = 3,
    map_blocks: MapBlocks = map_in_threads,
) -> Scatter:
    """Measure the scatter of every image's committed labels in one walk; `budget` bytes say what they buy.

    `temperature` T brings labels to it first, None leaves them as they were made. `for_images` N is how many images the
    bytes are for, None the store's. UsageError for label maps, numbers below 1, and where no image has two labels.
    """
    for name, value in (("budget", budget), ("for_images", for_images)):
        if value is not None and value < 1:
            raise UsageError(f"`{name}={value}`: give 1 or more")
    if is_map(labels.row.codec):
        raise UsageError(
            f"label set {labels.name} holds label maps, of which any number of crops takes the same bytes: choose one "
            "with labels of crops"
        )
    traces = np.full(labels.layout.num_rows, np.nan)
    job = partial(_traces, labels, temperature)
    for block, found in zip(labels.blocks, map_blocks(job, labels.blocks), strict=True):
        rows = labels.block_rows(block)
        traces[rows.start : rows.stop] = found
    traces[~labels.present] = np.nan
    images = np.flatnonzero(~np.isnan(traces))
    if not len(images):
        raise UsageError(
            f"label set {labels.name} has no image with two labels or more: nothing can scatter"
        )
    known = traces[images]
    mean, count = float(known.mean()), for_images or labels.store.num_images
    (own,) = (e for e in storage(labels.store).label_sets if e.label_set == labels.name)
    per_crop, keys = own.total_per_crop, labels.store.image_columns["key"]
    order = images[np.argsort(-known, kind="stable")][:worst]
    return Scatter(
        label_set=labels.name,
        temperature=labels.temperature if temperature is None else temperature,
        num_images=len(images),
        num_crops=labels.num_crops,
        trace=mean,
        median=float(np.median(known)),
        top_decile=float(np.quantile(known, 0.9)),
        worst=tuple((str(keys[row]), float(traces[row])) for row in order.tolist()),
        drifts=tuple(
            Drift(
                num_crops=m,
                drift=mean / m,
                bytes=None if per_crop is None else round(per_crop * m * count),
            )
            for m in sorted({*COUNTS, labels.num_crops})
        ),
        for_images=count,
        budget=budget,
        bought=() if budget is None else _bought(labels, mean, budget, count, per_crop),
    )


def _bought(
    labels: LabelSet, trace: float, budget: int, num_images: int, per_crop: float | None
) -> tuple[Bought, ...]:
    """The label set with its measured bytes, then every codec with its predicted ones."""
    forms = [] if per_crop is None else [(f"label set {labels.name}", "measured", per_crop)]
    for row in codec_table(labels.store, labels.name).rows:
        if not row.kind.startswith("relabel"):
            predicted = row.labels_per_crop + (row.crops_per_crop or 0.0)
            forms.append((f"{row.kind} {row.dtype}".strip(), row.basis, predicted))
    bought = []
    for form, basis, size in forms:
        crops = int(budget // (num_images * size))
        bought.append(
            Bought(
                form=form,
                basis=basis,
                bytes_per_crop=size,
                num_crops=crops,
                drift=trace / crops if crops else None,
            )
        )
    return tuple(bought)


def _traces(labels: LabelSet, temperature: float | None, block: int) -> NDArray[np.float64]:
    """(n,) trace(S) of the images of a block, NaN where there are fewer than two labels."""
    sums = LabelSums(len(labels.block_rows(block)), labels.num_classes)
    is_dense = labels.codec.kept(labels.num_classes) is None
    for columns in slabs(labels):
        if is_dense:
            sums.add_dense(labels.dense(block, columns, temperature))
        else:
            sums.add_sparse(labels.sparse(block, columns, temperature))
    return sums.traces()


class LabelSums:
    """What trace(S) of n images follows from, added up slab by slab; missing labels (NaN) do not count.

    Of sparse labels what lies above `rest` is kept per image and class that some crop lists: never all C classes of
    every crop.
    """

    def __init__(self, num_images: int, num_classes: int) -> None:
        self._classes = num_classes
        self._counts = np.zeros(num_images, np.int64)
        self._squares, self._rest = np.zeros(num_images), np.zeros(num_images)
        self._dense = np.zeros((num_images, 0))
        self._places, self._excess = np.zeros(0, np.int64), np.zeros(0)

    def add_dense(self, probs: NDArray[np.float32]) -> None:
        """Labels (n, m, C)."""
        there = ~np.isnan(probs[..., 0])
        known = np.where(there[..., None], probs, np.float32(0))
        total = known.sum(1, dtype=np.float64)
        self._dense = total + self._dense if self._dense.size else total
        self._squares += np.einsum("nmc,nmc->n", known, known, dtype=np.float64)
        self._counts += there.sum(1)

    def add_sparse(self, labels: SparseLabels) -> None:
        """Labels (n, m, K)."""
        there = ~np.isnan(labels.rest)
        rest = np.where(there, labels.rest, 0).astype(np.float64)
        excess = np.where(there[..., None], labels.probs - labels.rest[..., None], 0)
        excess = excess.astype(np.float64)
        self._rest += rest.sum(1)
        squares = self._classes * rest**2 + 2 * rest * excess.sum(-1) + np.square(excess).sum(-1)
        self._squares += squares.sum(1)
        self._counts += there.sum(1)
        # an entry without excess says nothing, whatever its class
        image, crop, kept = np.nonzero(excess)
        places = image * self._classes + labels.class_ids[image, crop, kept].astype(np.int64)
        self._places, at = np.unique(np.r_[self._places, places], return_inverse=True)
        above = np.r_[self._excess, excess[image, crop, kept]]
        self._excess = np.asarray(np.bincount(at, above), np.float64)

    def traces(self) -> NDArray[np.float64]:
        """(n,)."""
        n = len(self._counts)
        images = self._places // self._classes
        excess = np.bincount(images, self._excess, minlength=n)
        length = self._classes * self._rest**2 + 2 * self._rest * excess
        length += np.bincount(images, self._excess**2, minlength=n)
        length += np.square(self._dense).sum(1)
        m = np.where(self._counts > 1, self._counts, np.nan)
        # rounding must not make labels that are all alike scatter less than not at all
        traces: NDArray[np.float64] = np.maximum((self._squares - length / m) / (m - 1), 0)
        return traces
