"""A walk over the crops of a label set: the asked columns of the crops that were asked for, a block at a time.

A sample is a seeded choice of crops that does not depend on how they are stored or walked: every crop has a
number, a hash of (seed, image row, crop), and the smallest numbers win. The crops of an image are alike before
they are drawn, so a small sample is taken from a few chunk columns of every image, and the others are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.columns import COLUMNS, DTYPES, OF_GROUND_TRUTH, USUAL, Text, check_columns
from labelstore.blocks.condition import Condition
from labelstore.blocks.crop_slab import CropSlab, names_of, slabs
from labelstore.errors import UsageError, check_seed

if TYPE_CHECKING:
    from labelstore.store import LabelSet, Mask
    from labelstore.store.label_set import Images

Columns = dict[str, NDArray[Any] | Text]
"""Column name -> values of some crops, one entry per crop."""

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)
MANY = 10_000
"""Crops that are held beyond twice those wanted, so that small samples are not sorted at every block."""


@dataclass(frozen=True, kw_only=True)
class CropQuery:
    """Which columns of which crops."""

    labels: LabelSet
    columns: tuple[str, ...]
    where: Condition | None = None
    rows: NDArray[np.int64] | None = None
    """Image rows, sorted; None for all."""
    mask: Mask | None = None

    @classmethod
    def of(
        cls,
        labels: LabelSet,
        columns: Sequence[str] | None = None,
        *,
        where: str | None = None,
        images: Images | None = None,
        mask: str | None = None,
    ) -> CropQuery:
        """The query that these arguments ask for; UsageError where they make no sense.

        RejectedInput for columns of the ground truth where the outputs are no classes of the data set; the usual
        columns are without them there.
        """
        chosen_mask = None if mask is None else labels.store.mask(mask)
        if chosen_mask is not None and (chosen_mask.row.plan, chosen_mask.row.teacher) != (
            labels.plan.name,
            labels.row.teacher,
        ):
            raise UsageError(
                f"mask {mask} is of {chosen_mask.row.teacher} on {chosen_mask.row.plan}, label set {labels.name} of "
                f"{labels.row.teacher} on {labels.plan.name}: choose a mask of the same teacher and plan"
            )
        if isinstance(columns, str):
            raise UsageError(f"columns={columns!r}: give a list of names")
        usual: tuple[str, ...] = USUAL if chosen_mask is None else (*USUAL, "region")
        if not labels.outputs_are_classes:
            usual = tuple(name for name in usual if name not in OF_GROUND_TRUTH)
        names = check_columns(
            usual if columns is None else columns, with_mask=chosen_mask is not None
        )
        if not names:
            raise UsageError("no columns asked for: name at least one")
        condition = None if where is None else Condition.parse(where)
        if condition is not None:
            check_columns(sorted(condition.columns), with_mask=chosen_mask is not None)
        if OF_GROUND_TRUTH & {*names, *(condition.columns if condition else ())}:
            _ = labels.true_output  # refused here, and not in the middle of the rows
        rows = None if images is None else np.unique(labels.store.image_rows(images))
        return cls(labels=labels, columns=names, where=condition, rows=rows, mask=chosen_mask)

    @property
    def wanted(self) -> frozenset[str]:
        """Columns that are read: those asked for, and those that the condition looks at."""
        return frozenset(self.columns) | (self.where.columns if self.where else frozenset())

    @property
    def blocks(self) -> tuple[int, ...]:
        """Committed image blocks that hold any of the images."""
        blocks = self.labels.blocks
        if self.rows is None:
            return blocks
        asked = set((self.rows // self.labels.layout.images_per_shard).tolist())
        return tuple(block for block in blocks if block in asked)

    @property
    def num_images(self) -> int:
        """Images among those asked for that have labels."""
        present = self.labels.present
        return int(np.count_nonzero(present if self.rows is None else present[self.rows]))


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some crops: where they lie, and their columns."""

    position: NDArray[np.int64]
    """image row x M + crop."""
    holds: NDArray[np.bool_]
    """Whether each satisfies the condition."""
    columns: Columns

    def take(self, chosen: NDArray[Any]) -> Part:
        """The chosen crops, by number or by truth value."""
        return Part(
            position=self.position[chosen],
            holds=self.holds[chosen],
            columns={name: _take(values, chosen) for name, values in self.columns.items()},
        )

    def sorted(self) -> Part:
        """The same in the order of images and crops."""
        if bool((self.position[1:] > self.position[:-1]).all()):
            return self
        return self.take(np.argsort(self.position))


def walk(query: CropQuery) -> Iterator[Columns]:
    """The asked columns of the crops that satisfy the condition, one image block after the other, in order."""
    for block in query.blocks:
        parts = [read(query, block, columns) for columns in slabs(query.labels)]
        yield join([part.take(part.holds) for part in parts]).sorted().columns


def empty(query: CropQuery) -> Columns:
    """The asked columns of no crop, each of its type."""
    found: Columns = {}
    for name in query.columns:
        kind = COLUMNS[name].kind
        values = np.empty(0, DTYPES[kind])
        found[name] = (
            Text(codes=values, names=names_of(query.labels, name)) if kind == "text" else values
        )
    return found


def draw(query: CropQuery, wanted: float, *, seed: int = 0) -> Columns:
    """A number of the crops that satisfy the condition; or a share of all crops, and of these what satisfies it.

    `wanted` is a share below 1 and a number from 1 on. As many as there are, where there are fewer. UsageError for
    any other number, and for a seed below 0.
    """
    check_seed(seed)
    layout = query.labels.layout
    total = query.num_images * layout.num_crops
    is_share = wanted < 1
    number = _sample_size(wanted, total)
    if number == 0:
        return empty(query)
    order = np.random.default_rng([seed, 1]).permutation(layout.num_columns).tolist()
    # as many chunk columns as would do, then one more at a time where the condition left too few
    count = -(-number // (query.num_images * layout.crops_per_chunk))
    smallest = _Smallest(number, seed)
    while order:
        columns, order = sorted(order[:count]), order[count:]
        for block in query.blocks:
            for column in columns:
                part = read(query, block, range(column, column + 1))
                smallest.add(part if is_share else part.take(part.holds))
        best = smallest.settle()
        if best is None or is_share or len(best.position) >= number:
            break
        count = 1
    best = smallest.settle()
    if best is None:
        return empty(query)
    return best.take(best.holds).sorted().columns


def read(query: CropQuery, block: int, columns: range | None) -> Part:
    """The asked columns of every labelled crop of the asked images in one slab, and which satisfy the condition."""
    labels = query.labels
    slab = CropSlab(labels, block, columns, mask=query.mask, wanted=query.wanted)
    chosen = slab.present
    if query.rows is not None:
        chosen = chosen & np.isin(np.arange(slab.rows.start, slab.rows.stop), query.rows)
    rows = slice(None) if chosen.all() else np.flatnonzero(chosen)
    images = np.arange(slab.rows.start, slab.rows.stop)[rows]
    position = images[:, None] * labels.num_crops + np.arange(slab.crops.start, slab.crops.stop)
    holds = np.ones(position.shape, bool) if query.where is None else query.where.holds(slab)[rows]
    found: Columns = {}
    for name in query.columns:
        values = slab[name]
        if isinstance(values, Text):
            found[name] = Text(codes=values.codes[rows].reshape(-1), names=values.names)
        else:
            found[name] = values[rows].reshape(-1)
    return Part(position=position.reshape(-1), holds=holds.reshape(-1), columns=found)


def join(parts: Sequence[Part]) -> Part:
    """The crops of all parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Part(
        position=np.concatenate([part.position for part in parts]),
        holds=np.concatenate([part.holds for part in parts]),
        columns={
            name: join_values([part.columns[name] for part in parts]) for name in parts[0].columns
        },
    )


def join_values(parts: Sequence[NDArray[Any] | Text]) -> NDArray[Any] | Text:
    """The values of all parts, one after the other; texts of different parts may have different names."""
    texts = [part for part in parts if isinstance(part, Text)]
    if not texts:
        return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])
    first = texts[0].names
    if all(np.array_equal(text.names, first) for text in texts[1:]):
        return Text(codes=np.concatenate([text.codes for text in texts]), names=first)
    number: dict[Any, int] = {}
    codes = []
    for text in texts:
        used = np.unique(text.codes[text.codes >= 0])
        new = np.full(len(text.names) + 1, -1, np.int32)
        new[used] = [number.setdefault(text.names[code], len(number)) for code in used.tolist()]
        codes.append(new[np.maximum(text.codes, -1)])
    return Text(codes=np.concatenate(codes), names=np.array(list(number), object))


def crop_numbers(position: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A number per crop that decides on samples: splitmix64 of the seed and the crop's position."""
    with np.errstate(over="ignore"):
        state = position.astype(np.uint64) * _STEP + np.uint64(seed % 2**64)
        for shift, factor in zip((30, 27), _MIX, strict=True):
            state = (state ^ (state >> np.uint64(shift))) * factor
        return state ^ (state >> np.uint64(31))


class _Smallest:
    """The crops with the smallest numbers among all that were added, and a few more until `settle`."""

    def __init__(self, number: int, seed: int) -> None:
        self._number, self._seed = number, seed
        self._parts: list[Part] = []
        self._size = 0
        self._most: np.uint64 | None = None

    def add(self, part: Part) -> None:
        """Crops that were not added before."""
        if self._most is not None:
            # most crops of a large store are out of the question at once
            part = part.take(np.flatnonzero(crop_numbers(part.position, self._seed) < self._most))
        self._parts.append(part)
        self._size += len(part.position)
        if self._size > 2 * self._number + MANY:
            self.settle()

    def settle(self) -> Part | None:
        """As many as were wanted, or as there are; None before anything was added."""
        if not self._parts:
            return None
        part = join(self._parts)
        if len(part.position) > self._number:
            numbers = crop_numbers(part.position, self._seed)
            chosen = np.argpartition(numbers, self._number - 1)[: self._number]
            self._most = numbers[chosen].max()
            part = part.take(chosen)
        self._parts, self._size = [part], len(part.position)
        return part


def _sample_size(wanted: float, total: int) -> int:
    if not (np.isfinite(wanted) and wanted > 0) or (wanted > 1 and wanted != int(wanted)):
        raise UsageError(
            f"sample {wanted:g}: give a number of crops from 1 on, or a share of them between 0 and 1"
        )
    return min(total, round(wanted * total) if wanted < 1 else int(wanted))


def _take(values: NDArray[Any] | Text, chosen: NDArray[Any]) -> NDArray[Any] | Text:
    if isinstance(values, Text):
        return Text(codes=values.codes[chosen], names=values.names)
    taken: NDArray[Any] = values[chosen]
    return taken
