"""The tail of an image's labels, stored once: the mass beyond the top-K of all its crops lies on much the same classes.

Per image and shard of crops a table names the L classes that have most of the mass beyond the crops' top-K, with the
share of that mass that each has: the mean over the image's crops in the shard that do not keep the class. A crop's own
tail, which is stored with the crop, is spread in these proportions over the classes that the crop does not keep:

    t_c = min(max(a s_c, rest), p_K)      for the classes c of the table that the crop does not keep
    t_c = rest                            for every other class

so that none is above the K-th probability, none below the classes that the table does not name, and all of them sum
to the tail. a = tail / (1 - the shares of the classes that the crop keeps); `rest` follows from the sum.

On disk classes are in ascending order, each as its distance to the one before (`tail_gap`, the first from zero). Shares
are 2^(-code / 8) with code 0 to 254, divided by their sum (`tail_share`): first that of all classes that are not named,
together, then one for each named class. Entries that an image does not need have code 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field, SparseLabels, TopK, id_dtype, missing_id
from labelstore.codecs.class_union import filled
from labelstore.codecs.recovery import check_temperature

Float = NDArray[np.float32]

STEPS_PER_OCTAVE = 8
LAST_STEP, MISSING = 254, 255
VALUES_TOGETHER = 1 << 22
"""Counters (image, class) and table entries (crop, class) held at once: 32 MB."""

_SHARES = np.exp2(-np.arange(256) / STEPS_PER_OCTAVE).astype(np.float32)
_SHARES[MISSING] = 0


@dataclass(frozen=True, kw_only=True)
class TailTables:
    """How the tails of n images spread, likeliest class first."""

    class_ids: NDArray[Any]
    """(n, L) classes; the dtype's largest value where the image needs no more."""
    shares: Float
    """(n, L) of the image's mean tail, 0 where there is no class."""
    unnamed: Float
    """(n,) share of all other classes together."""

    def tempered(self, temperature: float) -> TailTables:
        """The tables for labels at temperature T, of which nothing but the proportions counts."""
        if temperature == 1:
            return self
        shares = self.shares ** np.float32(1 / temperature)
        return TailTables(class_ids=self.class_ids, shares=shares, unnamed=self.unnamed)

    def of(self, images: slice) -> TailTables:
        """The tables of some of the images."""
        return TailTables(
            class_ids=self.class_ids[images],
            shares=self.shares[images],
            unnamed=self.unnamed[images],
        )


@dataclass(frozen=True, kw_only=True)
class TailedLabels:
    """Labels (n, m, K) with their tails over their images' tables: a class that the table names and the crop does not
    list has min(max(scale * share, rest), p_K), every other `rest`."""

    labels: SparseLabels
    """(n, m, K) listed classes; `rest` is that of classes without a share."""
    scale: Float
    """(n, m): a."""
    tables: TailTables
    """Tables of the n images; shares at the labels' temperature."""


def tail_fields(entries: int, num_classes: int) -> tuple[Field, ...]:
    """The arrays of tables of L entries."""
    ids = id_dtype(num_classes)
    return (
        Field(
            name="tail_gap",
            dtype=ids.str,
            shape=(entries,),
            dimensions=("tail",),
            per="image",
            fill=missing_id(ids),
            shuffle="shuffle",
            level=7,
        ),
        Field(
            name="tail_share",
            dtype="u1",
            shape=(1 + entries,),
            dimensions=("share",),
            per="image",
            fill=MISSING,
            shuffle="noshuffle",
            level=7,
        ),
    )


def encode_tails(labels: TopK, k: int, entries: int, num_classes: int) -> dict[str, NDArray[Any]]:
    """Labels (n, m, W) of one whole shard, of which the first K are kept -> tables (n, L).

    Classes beyond the W that the labels list are in no table.
    """
    ids = id_dtype(num_classes)
    images = len(labels.class_ids)
    gaps = np.full((images, entries), missing_id(ids), ids)
    codes = np.full((images, 1 + entries), MISSING, np.uint8)
    step = max(1, VALUES_TOGETHER // num_classes)
    for first in range(0, images, step):
        part = slice(first, min(first + step, images))
        mass = _mass_beyond(labels.class_ids[part], labels.probs[part], k, num_classes)
        # the L largest, in the order of classes; those without mass are the last column, where there is none
        largest = np.argpartition(-mass, entries - 1, axis=-1)[:, :entries]
        found = np.take_along_axis(mass, largest, -1)
        largest = np.sort(np.where(found > 0, largest, num_classes), axis=-1)
        named = largest < num_classes
        share = np.take_along_axis(mass, largest, -1)
        # what is left is summed itself: beside the named mass it may be smaller than that is exact
        np.put_along_axis(mass, largest, 0, -1)
        beyond = np.nansum(labels.tail[part], axis=-1, dtype=np.float64) + mass.sum(-1)
        share = np.concatenate([beyond[:, None], share], axis=-1)
        share /= np.maximum(share.sum(-1, keepdims=True), np.finfo(np.float64).tiny)
        with np.errstate(divide="ignore"):
            code = np.rint(-STEPS_PER_OCTAVE * np.log2(share)).clip(0, LAST_STEP)
        codes[part] = np.where(share > 0, code, MISSING)
        gaps[part] = np.where(named, np.diff(largest, axis=-1, prepend=0), missing_id(ids))
    return {"tail_gap": gaps, "tail_share": codes}


def _mass_beyond(
    class_ids: NDArray[Any], probs: Float, k: int, num_classes: int
) -> NDArray[np.float64]:
    """(n, C + 1): mass of each class in the tails of m crops (n, m, W), as if all crops had it in their tails.

    The last column is 0.
    """
    images, size = len(class_ids), len(class_ids) * num_classes
    there = ~np.isnan(probs)
    at = class_ids.astype(np.intp) + np.arange(images)[:, None, None] * num_classes

    def added(rows: slice, weights: Float) -> NDArray[np.float64]:
        some = there[..., rows]
        sums = np.bincount(at[..., rows][some], weights[..., rows][some], minlength=size)
        return sums.astype(np.float64).reshape(images, num_classes)

    crops = there[..., 0].sum(-1)[:, None]
    without = np.maximum(crops - added(slice(k), np.ones_like(probs)), 1)
    mass = np.zeros((images, num_classes + 1))
    mass[:, :num_classes] = added(slice(k, None), probs) * (crops / without)
    return mass


def read_tails(arrays: Arrays) -> TailTables:
    """Tables (n, L) as they are on disk -> classes and shares, largest share first, the lower class among equals."""
    gaps, codes = arrays["tail_gap"], arrays["tail_share"]
    sentinel = missing_id(gaps.dtype)
    named = gaps != sentinel
    ids = np.cumsum(np.where(named, gaps, 0), axis=-1, dtype=np.int64)
    ids = np.where(named, ids, sentinel).astype(gaps.dtype)
    shares = _SHARES[codes]
    shares /= np.maximum(shares.sum(-1, keepdims=True), np.finfo(np.float32).tiny)
    order = np.argsort(codes[:, 1:], axis=-1, kind="stable")
    return TailTables(
        class_ids=np.take_along_axis(ids, order, -1),
        shares=np.take_along_axis(shares[:, 1:], order, -1),
        unnamed=shares[:, 0],
    )


def spread_tails(
    class_ids: NDArray[Any],
    probs: Float,
    tail: Float,
    tables: TailTables,
    num_classes: int,
    temperature: float = 1.0,
) -> TailedLabels:
    """Crops' K classes (n, m, K) and tails (n, m) -> labels at temperature T over their images' tables."""
    scale, rest, kept = np.empty_like(tail), np.empty_like(tail), np.array(probs)
    power = np.float32(1 / check_temperature(temperature))
    for part in _parts(tail.shape, tables):
        rows = tables.of(part)
        left = np.where(_is_kept(class_ids[part], rows), np.float32(0), rows.shares[:, None])
        scale[part], rest[part] = _spread(left, kept[part], tail[part], rows, num_classes)
        if power == 1:
            continue
        # as `recovery.temper`, of which this is the form that keeps the table apart
        largest = kept[part][..., 0].copy()
        own = (np.maximum(kept[part], rest[part][..., None]) / largest[..., None]) ** power
        low = (rest[part] / largest) ** power
        up = (scale[part] / largest) ** power
        beyond = np.clip(up[..., None] * left**power, low[..., None], own[..., -1:])
        others = num_classes - own.shape[-1] - np.count_nonzero(left, axis=-1)
        total = own.sum(-1) + np.where(left > 0, beyond, 0).sum(-1) + others * low
        kept[part] = own / total[..., None]
        scale[part], rest[part] = up / total, low / total
    return TailedLabels(
        labels=SparseLabels(class_ids=class_ids, probs=kept, rest=rest),
        scale=scale,
        tables=tables.tempered(temperature),
    )


def _parts(shape: tuple[int, ...], tables: TailTables) -> list[slice]:
    step = max(1, VALUES_TOGETHER // max(shape[1] * tables.shares.shape[-1], 1))
    return [slice(first, first + step) for first in range(0, shape[0], step)]


def _is_kept(class_ids: NDArray[Any], tables: TailTables) -> NDArray[np.bool_]:
    """(n, m, L): whether an entry of the image's table is no class of this crop's tail."""
    kept = np.zeros((*class_ids.shape[:2], tables.class_ids.shape[-1]), bool)
    kept |= (tables.shares == 0)[:, None]
    for rank in range(class_ids.shape[-1]):
        kept |= tables.class_ids[:, None] == class_ids[..., rank, None]
    return kept


def _spread(
    left: Float, probs: Float, tail: Float, tables: TailTables, num_classes: int
) -> tuple[Float, Float]:
    """a and `rest` (n, m), where `left` (n, m, L) are the shares of the classes that are not kept, else 0."""
    cap = probs[..., -1]
    named = np.count_nonzero(left, axis=-1)
    others = (num_classes - probs.shape[-1] - named).astype(np.float32)
    unnamed = np.where(others > 0, tables.unnamed[:, None], np.float32(0))
    whole = left.sum(-1) + unnamed
    scale = np.divide(tail, whole, out=np.zeros_like(tail), where=whole > 0)
    wanted = scale[..., None] * left
    own = np.minimum(wanted, cap[..., None])
    # `rest` is the level with which the sum of max(own, rest) and others * rest is the tail. What it raises is added up
    # and not tail - sum(own), in which the little that unnamed classes have would be lost
    beyond = scale * unnamed + (wanted - own).sum(-1)
    beyond = np.where(whole > 0, beyond, tail)
    rest = beyond / np.maximum(others, 1)
    if ((own < rest[..., None]) & (left > 0)).any() or not others.all():
        rest = _level(own, left > 0, beyond, others)
    rest = np.minimum(rest, cap)
    return scale, np.where(np.isnan(tail), np.float32(np.nan), rest).astype(np.float32)


def _level(own: Float, named: NDArray[np.bool_], beyond: Float, others: Float) -> Float:
    """The level (n, m) to which `beyond` raises `others` classes that have nothing, and those of `own` that are lower.

    `own` (n, m, L) is in descending order where `named`.
    """
    lowest = np.where(named, own, 0)[..., ::-1]
    mass = beyond[..., None] + _before(np.cumsum(lowest, axis=-1))
    count = others[..., None] + _before(np.cumsum(named[..., ::-1], axis=-1))
    level = np.divide(
        mass, count, out=np.where(mass > 0, np.float32(np.inf), mass), where=count > 0
    )
    ends = np.ones((*beyond.shape, 1), bool)
    found = np.concatenate([named[..., ::-1] & (lowest >= level[..., :-1]), ends], axis=-1)
    at = found.argmax(-1)[..., None]
    reached: Float = np.take_along_axis(level, at, -1)[..., 0]
    return reached


def _before(sums: NDArray[Any]) -> NDArray[Any]:
    """Running sums (..., L) with the empty one before the first: (..., 1 + L)."""
    return np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)


def listed(tailed: TailedLabels) -> SparseLabels:
    """Labels over their images' tables -> labels (n, m, K + L) that list the table's classes themselves.

    After the K kept classes come those of the table by share; classes instead of entries that the crop keeps
    have `rest`, as any that is not listed.
    """
    labels, tables = tailed.labels, tailed.tables
    k, entries = labels.class_ids.shape[-1], tables.class_ids.shape[-1]
    shape = (*labels.class_ids.shape[:2], k + entries)
    found = SparseLabels(
        class_ids=np.empty(shape, labels.class_ids.dtype),
        probs=np.empty(shape, np.float32),
        rest=labels.rest,
    )
    sentinel = missing_id(labels.class_ids.dtype)
    for part in _parts(shape[:2], tables):
        rows = tables.of(part)
        ids, own, rest = labels.class_ids[part], labels.probs[part], labels.rest[part, :, None]
        kept = _is_kept(ids, rows)
        # classes of the table move up to where kept ones leave a place
        first = np.cumsum(~kept, axis=-1)
        place = np.where(kept, first[..., -1:] + np.cumsum(kept, axis=-1), first) - 1
        mass = np.clip(tailed.scale[part, :, None] * rows.shares[:, None], rest, own[..., -1:])
        own_part = found.class_ids[part, :, k:], found.probs[part, :, k:]
        np.put_along_axis(
            own_part[0], place, np.broadcast_to(rows.class_ids[:, None], kept.shape), -1
        )
        np.put_along_axis(own_part[1], place, np.where(kept, rest, mass), -1)
        found.class_ids[part, :, :k], found.probs[part, :, :k] = ids, own
        missing = np.isnan(rest[..., 0])
        every = filled(found.class_ids[part], k + np.where(missing, 0, first[..., -1]))
        every[missing] = sentinel
        found.class_ids[part] = every
    found.probs[np.isnan(found.rest)] = np.nan
    return found
