"""Decides which crop comes when: the drawing order of crops, the order of images, and the deal to ranks.

Position t of an image is its t-th crop in a run; pass p takes as many positions as it has crops per
image (FKD 3.3, Table 7), starting where pass p - 1 stopped. With chunk columns of L crops out of M,
position t lies in cycle c = t // M, at place u = t mod M:

    column  = the (u // L)-th chunk column, columns sorted by hash(seed, 0, c, column)
    crop    = the (u mod L)-th crop of that column, sorted by hash(seed, 1, c, column, stream, crop)
    images of pass p are sorted by hash(seed, 2, p, stream)

A pass that takes the last crops of one cycle and the first r of the next would show an image one crop twice. So the
next cycle then begins with columns that the pass has not drawn from, as many as r crops need, wherever there are so
many; where there are not, and where a mask leaves an image fewer than M crops, it begins with the first r crops in its
order that the pass has not drawn. What is moved back keeps its order. The m crops of an image in a pass are thus
distinct wherever it has m.

Crops are numbered from 0 inside their column there; `stream` is the image key's number
(`labelstore.cropping.crop_plan.image_streams`). The hash folds its words into 64 bits, h <- splitmix64(h ^ word)
from h = 0; crops compare its upper 48 bits, then their number. Nothing depends on batch size, workers
or ranks, and every crop comes once before any comes twice (FKD draws with replacement).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import UsageError

U64 = NDArray[np.uint64]

COLUMNS, CROPS, IMAGES = 0, 1, 2
"""Purpose of a hash: its second word."""
MAX_CROPS_PER_CHUNK = 1 << 16
"""A crop's number inside its column has to fit the low 16 bits of the sort key."""
FEWEST_TO_SPREAD = 3
"""Crops of a full step (on a rank) from which a single crop can be joined by another, and no share outgrows a full
one."""
_LOW16 = np.uint64(0xFFFF)


def splitmix64(words: U64) -> U64:
    """SplitMix64's output function (Steele et al., OOPSLA 2014), elementwise on uint64; a new array."""
    mixed = words + np.uint64(0x9E37_79B9_7F4A_7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58_476D_1CE4_E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D0_49BB_1331_11EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_words(*words: int | U64) -> U64:
    """h <- splitmix64(h ^ word) over the words from h = 0; arrays broadcast; uint64, at least (1,)."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = splitmix64(state ^ (np.uint64(word) if isinstance(word, int) else word))
    return state


@dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive positions that lie in one chunk column of one cycle."""

    cycle: int
    column: int
    inside: range
    """Places in the column's drawing order, within 0 to L - 1."""
    positions: range
    """Positions of the run, as many as `inside`."""


@dataclass(frozen=True, kw_only=True)
class DrawingOrder:
    """The order in which every image's stored crops are drawn.

    >>> order = DrawingOrder(seed=1, num_crops=6, crops_per_chunk=3)
    >>> sorted(order.crops(np.array([42], np.uint64), range(6))[0].tolist())
    [0, 1, 2, 3, 4, 5]
    """

    seed: int
    """0 to 2^64 - 1."""
    num_crops: int
    """M."""
    crops_per_chunk: int
    """L, a divisor of M: positions of L consecutive crops touch one chunk column of the store."""
    schedule: PassSchedule | None = None
    """The positions that each pass takes; None where no pass takes two crops of an image."""
    _columns: dict[int, list[int]] = field(
        init=False, default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.num_crops < 1 or not 1 <= self.crops_per_chunk <= MAX_CROPS_PER_CHUNK:
            raise UsageError(
                f"{self.num_crops} crops in chunks of {self.crops_per_chunk}: at least one crop, "
                f"chunks of 1 to {MAX_CROPS_PER_CHUNK}"
            )
        if self.num_crops % self.crops_per_chunk:
            raise UsageError(
                f"{self.num_crops} crops do not divide into chunks of {self.crops_per_chunk}: "
                "give a divisor of M"
            )

    @property
    def num_columns(self) -> int:
        """Chunk columns."""
        return self.num_crops // self.crops_per_chunk

    def columns(self, cycle: int) -> list[int]:
        """Chunk columns in the order in which a cycle visits them, the same for all images."""
        # a cycle's columns may depend on those of the one before
        for each in range(cycle + 1):
            if each in self._columns:
                continue
            numbers = np.arange(self.num_columns, dtype=np.uint64)
            keys = hash_words(self.seed, COLUMNS, each, numbers)
            order: list[int] = np.argsort(keys, kind="stable").tolist()
            before, needed = self._columns_around(each * self.num_crops)
            if before and before + needed <= self.num_columns:
                drawn_from = self._columns[each - 1][-before:]
                first = [column for column in order if column not in drawn_from][:needed]
                order = first + [column for column in order if column not in first]
            self._columns[each] = order
        return self._columns[cycle]

    @cached_property
    def keeps_columns(self) -> bool:
        """Whether every pass draws distinct crops column by column; otherwise only `usable_crops` keeps them apart."""
        ends = range(
            self.num_crops, 0 if self.schedule is None else self.schedule.epochs, self.num_crops
        )
        return all(sum(self._columns_around(end)) <= self.num_columns for end in ends)

    def _columns_around(self, end: int) -> tuple[int, int]:
        """Chunk columns that the pass around the end of a cycle draws from before and after it; (0, 0) without one."""
        around = None if self.schedule is None else self.schedule.around(end)
        if around is None or len(around) > self.num_crops:
            return 0, 0
        length = self.crops_per_chunk
        return -(-(end - around.start) // length), -(-(around.stop - end) // length)

    def spans(self, positions: range) -> Iterator[Span]:
        """The positions, cut where chunk column or cycle changes."""
        at = positions.start
        while at < positions.stop:
            cycle, place = divmod(at, self.num_crops)
            nth, inside = divmod(place, self.crops_per_chunk)
            count = min(self.crops_per_chunk - inside, positions.stop - at)
            yield Span(
                cycle=cycle,
                column=self.columns(cycle)[nth],
                inside=range(inside, inside + count),
                positions=range(at, at + count),
            )
            at += count

    def column_crops(self, streams: U64, cycle: int, column: int) -> NDArray[np.intp]:
        """(n, L) crop numbers inside one chunk column, in each image's drawing order."""
        images = hash_words(self.seed, CROPS, cycle, column, streams)
        numbers = np.arange(self.crops_per_chunk, dtype=np.uint64)
        keys = splitmix64(images[:, None] ^ numbers)
        # the number rides in the low bits: sorting is twice as fast as argsort, and ties are decided
        keys &= ~_LOW16
        keys |= numbers
        keys.sort(axis=1)
        keys &= _LOW16
        return keys.astype(np.intp)

    def crops(self, streams: U64, positions: range) -> NDArray[np.intp]:
        """(n, len(positions)) crop numbers out of all M."""
        drawn = np.empty((len(streams), len(positions)), np.intp)
        for span in self.spans(positions):
            at = slice(
                span.positions.start - positions.start, span.positions.stop - positions.start
            )
            inside = self.column_crops(streams, span.cycle, span.column)
            first = span.column * self.crops_per_chunk
            drawn[:, at] = inside[:, span.inside.start : span.inside.stop] + first
        return drawn

    def usable_crops(
        self, streams: U64, usable: NDArray[np.bool_], num_positions: int
    ) -> NDArray[np.intp]:
        """(n, num_positions) crop numbers out of the usable ones: the order without the others.

        `usable` is (n, M), with at least one crop per image. An image with U usable crops draws each
        of them once in its first U positions, in the order of cycle 0, and then goes on with cycle 1, which begins
        with other crops than those that a pass around its end has drawn.
        """
        asked = num_positions
        several = self.schedule is not None and max(self.schedule.crops_per_pass) > 1
        if self.schedule is not None and several:
            # what a pass draws may come from behind the last position
            num_positions += max(self.schedule.crops_per_pass)
        counts = usable.sum(axis=1)
        if len(counts) and not counts.min():
            raise UsageError("an image without a usable crop cannot be drawn: leave it out")
        drawn = np.empty((len(streams), num_positions), np.intp)
        filled = np.zeros(len(streams), np.intp)
        start = 0
        while len(rows := np.flatnonzero(filled < num_positions)):
            # as many columns as the neediest image may still take: few where nearly all crops are usable
            share = ((num_positions - filled[rows]) / counts[rows]).max()
            columns = min(math.ceil(share * self.num_columns), self.num_columns)
            stop = start + columns * self.crops_per_chunk
            order = self.crops(streams[rows], range(start, stop))
            start = stop
            # flat indices: several times as fast as an index per axis
            taken = usable.reshape(-1).take(order + rows[:, None] * self.num_crops)
            places = np.cumsum(taken, axis=1, dtype=np.intp)
            places += filled[rows, None] - 1
            taken &= places < num_positions
            filled[rows] = np.minimum(places[:, -1] + 1, num_positions)
            places += rows[:, None] * num_positions
            drawn.reshape(-1)[places[taken]] = order[taken]
        if several:
            fewest = int(counts[counts > 1].min(initial=asked))
            for cycle in range(1, -(-asked // fewest)):
                self._set_apart(drawn, cycle * counts, counts, asked)
        return drawn[:, :asked]

    def _set_apart(
        self, drawn: NDArray[np.intp], ends: NDArray[np.intp], counts: NDArray[np.intp], asked: int
    ) -> None:
        """Begin the cycles after `ends` (n,) with crops that the pass around each end has not drawn, in place."""
        assert self.schedule is not None
        starts, stops = self.schedule.bounds_around(ends)
        rows = np.flatnonzero((starts < ends) & (ends < asked) & (stops - starts <= counts))
        if not len(rows):
            return
        end, start, stop = ends[rows, None], starts[rows, None], stops[rows, None]
        steps = np.arange(int((stop - start).max()))
        before, after = end - 1 - steps, end + steps
        old = np.where(before >= start, drawn[rows[:, None], np.maximum(before, 0)], -1)
        new = drawn[rows[:, None], after]
        free = (steps < stop - start) & ~(new[..., None] == old[:, None]).any(axis=-1)
        first = free & (np.cumsum(free, axis=1) <= stop - end)
        order = np.argsort(~first, axis=1, kind="stable")
        drawn[rows[:, None], after] = np.take_along_axis(new, order, axis=1)


@dataclass(frozen=True, kw_only=True)
class PassSchedule:
    """How many crops of every image each pass takes."""

    crops_per_pass: tuple[int, ...]
    """m of each pass; their sum is the run's epochs."""

    def __post_init__(self) -> None:
        if not self.crops_per_pass or min(self.crops_per_pass) < 1:
            raise UsageError(
                f"{self.crops_per_pass} crops per pass: at least one pass of at least one crop"
            )

    @classmethod
    def of(
        cls,
        *,
        passes: int,
        crops_per_image: int,
        single_crop_first: int = 0,
        single_crop_last: int = 0,
    ) -> PassSchedule:
        """`passes` of m crops, between passes of one crop as in the FKD release.

        >>> PassSchedule.of(passes=2, crops_per_image=4, single_crop_last=1).crops_per_pass
        (4, 4, 1)
        """
        single = (1,)
        return cls(
            crops_per_pass=single * single_crop_first
            + (crops_per_image,) * passes
            + single * single_crop_last
        )

    @property
    def num_passes(self) -> int:
        """Times every image is loaded."""
        return len(self.crops_per_pass)

    @property
    def epochs(self) -> int:
        """Crops of every image over the whole run: one epoch is N crops."""
        return self._starts[-1]

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return tuple(accumulate(self.crops_per_pass, initial=0))

    def around(self, position: int) -> range | None:
        """Positions of the pass that goes on at a position, having begun before it; None where none does."""
        nth = bisect_right(self._starts, position) - 1
        if not 0 <= nth < self.num_passes or self._starts[nth] == position:
            return None
        return self.positions(nth)

    def bounds_around(
        self, positions: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First position of the pass that each position lies in, and the first behind it; behind the run, both are the
        position."""
        starts = np.asarray(self._starts)
        nth = np.minimum(np.searchsorted(starts, positions, side="right"), self.num_passes) - 1
        inside = positions < self.epochs
        return np.where(inside, starts[nth], positions), np.where(
            inside, starts[nth + 1], positions
        )

    def shows_twice(self, usable: int, *, ranked: bool) -> bool:
        """Whether drawing U usable crops straight on shows one of them twice in a pass that could do without.

        Straight on is cycle after cycle or, `ranked`, each several times in a row: the drawing order of version 1.
        """
        if ranked:
            return self.epochs > usable and any(1 < m <= usable for m in self.crops_per_pass)
        around = (self.around(end) for end in range(usable, self.epochs, usable))
        return any(one is not None and len(one) <= usable for one in around)

    def runs(self) -> list[tuple[int, int]]:
        """Passes with equally many crops, one after the other: (passes, crops per image)."""
        return [(len(list(equal)), m) for m, equal in groupby(self.crops_per_pass)]

    def positions(self, pass_index: int) -> range:
        """Positions of one pass."""
        if not 0 <= pass_index < self.num_passes:
            raise UsageError(f"pass {pass_index}: this run has passes 0-{self.num_passes - 1}")
        return range(self._starts[pass_index], self._starts[pass_index + 1])


@dataclass(frozen=True, kw_only=True)
class Deal:
    """Steps of a run, and which images of a pass's global order each rank takes in a step.

    The last step of a pass may be smaller; nothing is padded or dropped, so that a rank may have fewer
    images than another there, or none. Batch norm has no variance over a single crop, so that with one crop per image
    a last step of one image gets a second from the step before, and a small step goes to fewer ranks, two crops or
    more to each. Both need full steps of 3 crops or more (per rank); where these are smaller, single crops stay.
    """

    schedule: PassSchedule
    num_images: int
    batch_size: int
    """B, crops per optimiser step over all ranks and accumulation steps."""
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.world_size < 1:
            raise UsageError(
                f"{self.num_images} images over {self.world_size} ranks: at least one of each"
            )
        for m in sorted(set(self.schedule.crops_per_pass)):
            if self.batch_size < 1 or self.batch_size % (m * self.world_size):
                raise UsageError(
                    f"`batch_size={self.batch_size}` is not a multiple of {m * self.world_size}, "
                    f"which is {m} crops per image times {self.world_size} ranks: change one of them"
                )

    def images_per_step(self, pass_index: int) -> int:
        """B / m."""
        return self.batch_size // len(self.schedule.positions(pass_index))

    def steps(self, pass_index: int) -> int:
        """Optimiser steps of one pass."""
        return -(-self.num_images // self.images_per_step(pass_index))

    @cached_property
    def _first_steps(self) -> tuple[int, ...]:
        steps = (self.steps(p) for p in range(self.schedule.num_passes))
        return tuple(accumulate(steps, initial=0))

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self._first_steps[-1]

    def first_step(self, pass_index: int) -> int:
        """Number of steps before a pass."""
        return self._first_steps[pass_index]

    def locate(self, step: int) -> tuple[int, int]:
        """(pass, step inside it) of a step of the run; (number of passes, 0) after the last."""
        if not 0 <= step <= self.num_steps:
            raise UsageError(f"step {step}: this run has steps 0-{self.num_steps}")
        for pass_index, (first, stop) in enumerate(pairwise(self._first_steps)):
            if step < stop:
                return pass_index, step - first
        return self.schedule.num_passes, 0

    def images_of_step(self, pass_index: int, step: int) -> int:
        """Images of one step over all ranks."""
        return self._first_image(pass_index, step + 1) - self._first_image(pass_index, step)

    def _first_image(self, pass_index: int, step: int) -> int:
        """Images of a pass before one of its steps."""
        per_step = self.images_per_step(pass_index)
        first = min(step * per_step, self.num_images)
        leaves_one = self.num_images - first == 1 and step > 0
        single_crops = per_step == self.batch_size
        return first - (leaves_one and single_crops and per_step >= FEWEST_TO_SPREAD)

    def share(self, pass_index: int, step: int, rank: int = 0) -> slice:
        """One rank's images of one step, as a slice of the pass's global order; possibly empty."""
        start, num_images = (
            self._first_image(pass_index, step),
            self.images_of_step(pass_index, step),
        )
        taking_part = self.ranks_of_step(pass_index, step)
        each, over = divmod(num_images, taking_part)
        first = start + min(rank * each + min(rank, over), num_images)
        return slice(first, first + (each + (rank < over) if rank < taking_part else 0))

    def ranks_of_step(self, pass_index: int, step: int) -> int:
        """How many ranks, the first ones, a step's images are dealt to; the others have none."""
        single_crops = self.images_per_step(pass_index) == self.batch_size
        if not single_crops or self.batch_size // self.world_size < FEWEST_TO_SPREAD:
            return self.world_size
        return min(self.world_size, max(1, self.images_of_step(pass_index, step) // 2))


def image_order(seed: int, pass_index: int, streams: U64) -> NDArray[np.intp]:
    """(n,) indices into `streams`: the order in which one pass loads the images, over all ranks."""
    keys = hash_words(seed, IMAGES, pass_index, streams)
    # the index rides in the low bits: a sort of numbers is ten times faster than an argsort
    low = np.uint64((1 << max(len(keys) - 1, 1).bit_length()) - 1)
    packed = (keys & ~low) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    order = (packed & low).astype(np.intp)
    packed |= low
    tied = np.flatnonzero(packed[1:] == packed[:-1])
    if len(tied):
        # their upper bits are equal, so that it is the low ones that decide
        at = np.union1d(tied, tied + 1)
        order[at] = order[at][np.argsort(keys[order[at]], kind="stable")]
    return order


def check_seed(seed: int) -> int:
    """The seed, if it is an integer of 0 to 2^64 - 1; UsageError otherwise."""
    if not 0 <= seed < 1 << 64:
        raise UsageError(f"seed {seed}: give an integer of 0 to 2^64 - 1")
    return seed
