"""Which image each row of the batch files is (`batch_files`): said in them or beside them, or drawn again from a seed.

Positions are those of torchvision's ImageFolder: all of these programs read one. SRe2L alone says no positions: its
rows are what torch's RandomSampler drew from a seed, which older versions did in another way than today's. Both ways
are candidates (`image_orders`), and what speaks for one is, in this turn:

    boxes               shares of boxes are whole pixels of the image and lie in it, where images differ in size
    the ground truth    the probability of the image's class, where the outputs are the folder's classes
    an image's labels   the scalar product of the labels that an image has in two epochs
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.labels import softmax
from labelstore.exchange.readers.batch_contents import Batch, Flavour, read_batches
from labelstore.exchange.readers.boxes import BoxShares
from labelstore.exchange.readers.image_orders import (
    CHANCE,
    Chosen,
    Evidence,
    Order,
    check_count,
    choose,
    folder_order,
    weigh,
)
from labelstore.exchange.readers.label_values import finite, whole_probabilities
from labelstore.exchange.readers.sources import size_or_none
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.inert_values import Value
from labelstore.untrusted.refusal import Refused, named, read_bytes
from labelstore.untrusted.torch_archive import load_torch

MAX_JSON_BYTES = 1 << 30
MAX_EPOCHS = 10_000
SAMPLER_SEED = 42
HALD_SAMPLER = "sampler_indices_dict.pt"
DRAWS = {
    "two-permutations": (2, "today's torch draws two permutations per epoch"),
    "one-permutation": (1, "older versions of torch drew one"),
}
"""Orders of RandomSampler: permutations per epoch, and what it means."""
SAMPLED_FILES = 16
"""Files whose rows are compared with images, and files of each of two epochs."""
SAMPLED_ROWS = 512

T = TypeVar("T")
Batches = Mapping[Path, tuple[int, int]]
"""Batch file -> (epoch, number), in order."""
Rows = dict[Path, NDArray[np.int64]]
"""Batch file -> image row of each of its rows."""
RowsOf = tuple[NDArray[np.int64], Batch]
"""A batch and the image rows of its rows."""


def listed_order(
    source: Path, batches: Batches, flavour: Flavour, images: ImageSource, stated: Stated
) -> Rows:
    """Image rows of every file, as the sampler's file says."""
    by_batch = flavour == "lpqld"
    kind = "batch" if by_batch else "epoch"
    path = source / (HALD_SAMPLER if flavour == "hald" else f"sampler_indices_{kind}.json")
    folder = folder_order(images)
    number_of = {file: at[by_batch] for file, at in batches.items()}
    with named(path):
        if flavour == "hald":
            listed = load_torch(path)
        else:
            try:
                listed = json.loads(read_bytes(path, MAX_JSON_BYTES))
            except (ValueError, RecursionError):
                raise Refused("is no JSON") from None
        rows = listed_positions(listed, len(images))
        missing = [number for number in number_of.values() if str(number) not in rows]
        if missing:
            raise Refused(f"lists no indices of {kind} {missing[0]}")
    if not by_batch:
        for positions in rows.values():
            check_whole(positions, path, images)
    if flavour != "lpld":
        return {file: folder[rows[str(number)]] for file, number in number_of.items()}
    counts = {epoch: len(rows[str(epoch)]) for epoch, _ in batches.values()}
    size = stated.batch_size or batch_size(batches, flavour, counts)
    return {
        file: folder[rows[str(epoch)][number * size : (number + 1) * size]]
        for file, (epoch, number) in batches.items()
    }


def with_rows(batches: Sequence[Batch], rows: NDArray[np.int64]) -> list[RowsOf]:
    """The batches of a file, each with its image rows; Refused where these are of another number."""
    ends = np.cumsum([len(batch.shares) for batch in batches])
    if ends[-1] != len(rows):
        raise Refused(f"holds {ends[-1]} rows, and the sampler drew {len(rows)}")
    return list(zip(np.split(rows, ends[:-1]), batches, strict=True))


def proved_order(
    source: Path, batches: Batches, images: ImageSource, boxes: BoxShares
) -> tuple[Rows, Chosen]:
    """HALD's rows, with what speaks for them; RejectedInput where the labels fit them no better than any others."""
    rows = listed_order(source, batches, "hald", images, Stated())
    with named(next(iter(batches))):
        with_rows(read_batches(next(iter(batches)), "hald"), rows[next(iter(batches))])
    rows_of_epochs: list[list[RowsOf]] = []
    for path in list(batches)[:2]:
        try:
            with named(path):
                looked_at = spread(with_rows(read_batches(path, "hald"), rows[path]))
                for _, batch in looked_at:
                    whole_probabilities(batch.values)
                rows_of_epochs.append(looked_at)
        except RejectedInput:
            continue  # named when it is read
    evidence = evidence_of(
        rows_of_epochs[0] if rows_of_epochs else [],
        rows_of_epochs,
        boxes,
        lambda batch: whole_probabilities(batch.values),
        images,
        {},
    )
    chosen = choose(
        {"listed": f"as {HALD_SAMPLER} says"},
        lambda name: evidence,
        stated="listed",
        complete=False,
        source=source,
        question="whose rows they are",
    )
    proof = chosen.evidence
    is_proved = proof is not None and proof.whole and proof.chance <= CHANCE
    return rows, replace(chosen, how="proved") if is_proved else chosen


def listed_positions(listed: Value, count: int) -> dict[str, NDArray[np.int64]]:
    """Positions in a data set of `count` images by epoch or batch, as a sampler's file lists them."""
    if not isinstance(listed, dict):
        raise Refused("is no table of indices")
    return {str(key): _indices(value, count) for key, value in listed.items()}


def _indices(value: Value, count: int) -> NDArray[np.int64]:
    if not isinstance(value, list) or not all(type(index) is int for index in value):
        raise Refused("lists indices that are no whole numbers")
    if value and not (min(value) >= 0 and max(value) < count):
        raise Refused(f"names image {max(value)}, and the folder has {count}")
    return np.array(value, np.int64)


def check_whole(positions: NDArray[np.int64], source: Path, images: ImageSource) -> None:
    """Refuse positions 0 to n - 1, an epoch of a data set of n images, for a folder with another number."""
    if len(positions) and np.array_equal(np.sort(positions), np.arange(len(positions))):
        check_count(len(positions), "an epoch is of", images, np.arange(len(images)), source)


def positions_in_files(
    first: Batch, batches: Batches, flavour: Flavour, images: ImageSource
) -> NDArray[np.int64]:
    """Image rows of the first file, which says them as all others do.

    RejectedInput where the first epoch is of another number of images.
    """
    path, (epoch, _) = next(iter(batches.items()))
    parts = []
    for file in (file for file, at in batches.items() if at[0] == epoch):
        try:
            with named(file):
                positions = read_batches(file, flavour)[0].positions
        except RejectedInput:
            continue  # named when it is read
        assert positions is not None
        parts.append(positions)
    check_whole(np.concatenate(parts), path.parent, images)
    assert first.positions is not None
    with named(path):
        return rows_of_positions(first.positions, folder_order(images))


def rows_of_positions(positions: NDArray[np.int64], folder: Order) -> NDArray[np.int64]:
    """Image rows of positions in the data set; Refused for a position that the folder does not have."""
    if not (positions.min() >= 0 and positions.max() < len(folder)):
        raise Refused(f"names image {positions.max()}, and the folder has {len(folder)}")
    return folder[positions]


def batch_size(batches: Batches, flavour: Flavour, counts: Mapping[int, int]) -> int:
    """Rows of a batch, from the first files of epochs of `counts` rows.

    File b of an epoch of n rows, with r rows of its own, is a whole batch, so that B = r, or the last, so that
    b B + r = n. UsageError where several sizes are possible: then it must be stated.
    """
    possible: set[int] = set()
    for epoch, n in counts.items():
        path, number = next((path, at[1]) for path, at in batches.items() if at[0] == epoch)
        try:
            with named(path):
                rows = len(read_batches(path, flavour)[0].shares)
        except RejectedInput:
            continue  # named when it is read
        here = {rows} if (number + 1) * rows <= n else set()
        if number and (n - rows) % number == 0 and (n - rows) // number >= rows:
            here.add((n - rows) // number)
        if not here:
            raise RejectedInput(
                f"{path}: is batch {number} with {rows} rows, which no epoch of {n} rows has: give the images that the "
                "files were made from"
            )
        possible = possible & here if possible else here
        if not possible:
            raise RejectedInput(
                f"{path}: has {rows} rows, which batches of other epochs do not allow"
            )
        if len(possible) == 1:
            return possible.pop()
    if not possible:
        raise RejectedInput(f"{next(iter(batches))}: no epoch begins with a file that can be read")
    raise UsageError(
        f"{next(iter(batches))}: its batches may have had {' or '.join(map(str, sorted(possible)))} rows: state "
        "batch_size"
    )


@dataclass(kw_only=True)
class SampledOrders:
    """SRe2L's candidates, and what speaks for each."""

    batches: Batches
    images: ImageSource
    boxes: BoxShares
    seed: int
    size: int
    _orders: dict[str, Rows] = field(default_factory=dict)
    _files: dict[Path, Batch | None] = field(default_factory=dict)
    _sides: dict[int, tuple[int, int]] = field(default_factory=dict)

    def rows(self, name: str) -> Rows:
        """Image rows of every batch under one way to draw."""
        if name not in self._orders:
            folder = folder_order(self.images)
            epochs = 1 + max(epoch for epoch, _ in self.batches.values())
            drawn = permutations(len(self.images), epochs, self.seed, DRAWS[name][0])
            self._orders[name] = {
                path: folder[drawn[epoch][number * self.size : (number + 1) * self.size]]
                for path, (epoch, number) in self.batches.items()
            }
        return self._orders[name]

    def evidence(self, name: str) -> list[Evidence | None]:
        """Boxes, ground truth, an image's own labels."""
        rows = self.rows(name)
        # the first permutation is the same either way, and would speak for both
        later = [path for path, (epoch, _) in self.batches.items() if epoch > 0]
        looked_at = self._with_rows(rows, later or list(self.batches))
        epochs = sorted({epoch for epoch, _ in self.batches.values()})[:2]
        both = [
            self._with_rows(rows, [path for path, at in self.batches.items() if at[0] == epoch])
            for epoch in epochs
        ]
        return evidence_of(looked_at, both, self.boxes, _probs, self.images, self._sides)

    def _with_rows(self, rows: Rows, paths: Sequence[Path]) -> list[RowsOf]:
        """Some of the files that can be read and have as many rows as they should."""
        read = [(rows[path], self._read(path)) for path in spread(paths)]
        return [(at, batch) for at, batch in read if batch and len(at) == len(batch.shares)]

    def _read(self, path: Path) -> Batch | None:
        if path not in self._files:
            try:
                with named(path):
                    (self._files[path],) = read_batches(path, "sre2l")
            except RejectedInput:
                self._files[path] = None  # named when it is read
        return self._files[path]


def evidence_of(
    looked_at: Sequence[RowsOf],
    epochs: Sequence[Sequence[RowsOf]],
    boxes: BoxShares,
    probs_of: Callable[[Batch], NDArray[np.float32]],
    images: ImageSource,
    sides: dict[int, tuple[int, int]],
) -> list[Evidence | None]:
    """Collect what speaks for these rows of batches being those images; None of what cannot tell.

    Whether boxes are whole pixels of their images (`sides` keeps the sizes that were read), the probability of the
    image's class where the labels have the folder's classes, how alike an image's labels are in two epochs.
    """
    shares, at = _head([batch.shares for _, batch in looked_at], [rows for rows, _ in looked_at])
    evidence: list[Evidence | None] = [None, None, None]
    if shares is not None and not boxes.round_boxes:
        for row in set(at.tolist()) - sides.keys():
            sides[row] = size_or_none(images, row)
        sizes = np.array([sides[row] for row in at.tolist()], np.int64)
        evidence[0] = weigh("boxes", [boxes.fits(shares, sizes)], must_fit=True)
    probs, at = _head([probs_of(batch) for _, batch in looked_at], [rows for rows, _ in looked_at])
    if probs is not None and probs.shape[1] == len(images.classes):
        evidence[1] = weigh("the ground truth", [probs[:, images.class_ids[at]]])
    if len(epochs) == 2:
        evidence[2] = label_evidence(epochs[0], epochs[1], probs_of)
    return evidence


def label_evidence(
    first: Sequence[RowsOf],
    second: Sequence[RowsOf],
    probs_of: Callable[[Batch], NDArray[np.float32]],
) -> Evidence | None:
    """How alike the labels are that an image has in two epochs."""
    labels: list[dict[int, NDArray[np.float32]]] = []
    for epoch in (first, second):
        labels_by_image: dict[int, NDArray[np.float32]] = {}
        for rows, batch in epoch:
            labels_by_image |= dict(zip(rows.tolist(), probs_of(batch), strict=True))
        labels.append(labels_by_image)
    both = [row for row in labels[0] if row in labels[1]][:SAMPLED_ROWS]
    if len(both) < 2:
        return None
    one, other = (np.stack([labels_by_image[row] for row in both]) for labels_by_image in labels)
    return weigh("an image's labels in two epochs", [one @ other.T])


def sampled_order(
    source: Path, batches: Batches, images: ImageSource, stated: Stated, boxes: BoxShares
) -> tuple[Rows, Chosen, int]:
    """Image rows of every batch by the sampler's seed, which order was taken, and the batch size."""
    if stated.order is not None and stated.order not in DRAWS:
        raise UsageError(f"order {stated.order[:100]}: of sre2l files it is {' or '.join(DRAWS)}")
    epochs = 1 + max(epoch for epoch, _ in batches.values())
    if epochs > MAX_EPOCHS:
        raise RejectedInput(
            f"{next(iter(batches))}: epoch {epochs - 1}, up to {MAX_EPOCHS} are read"
        )
    size = stated.batch_size or batch_size(
        batches, "sre2l", {epoch: len(images) for epoch, _ in batches.values()}
    )
    _check_last(batches, size, source, images)
    seed = SAMPLER_SEED if stated.sampler_seed is None else stated.sampler_seed
    orders = SampledOrders(batches=batches, images=images, boxes=boxes, seed=seed, size=size)
    # the first epoch's order is the same either way
    ways = DRAWS if epochs > 1 else {"two-permutations": DRAWS["two-permutations"]}
    both_stated = stated.order is not None and stated.sampler_seed is not None
    chosen = choose(
        {name: meaning for name, (_, meaning) in ways.items()},
        orders.evidence,
        stated=stated.order if both_stated else None,
        complete=False,
        source=source,
        question=f"its rows are in the order that a sampler drew, of seed {seed} or another (state sampler_seed, too)",
    )
    if stated.order not in (None, chosen.name):
        raise RejectedInput(
            f"{source}: order {stated.order} was stated, and {chosen.name} is proved ({chosen.evidence}): leave order "
            "out"
        )
    return orders.rows(chosen.name), chosen, size


def _check_last(batches: Batches, size: int, source: Path, images: ImageSource) -> None:
    """Refuse an epoch whose last batch ends elsewhere than the folder does: any order would be another one."""
    epoch = next(iter(batches.values()))[0]
    path, number = max(
        ((p, at[1]) for p, at in batches.items() if at[0] == epoch), key=lambda f: f[1]
    )
    try:
        with named(path):
            rows = len(read_batches(path, "sre2l")[0].shares)
    except RejectedInput:
        return  # named when it is read
    check_count(number * size + rows, "an epoch is of", images, np.arange(len(images)), source)


def permutations(count: int, epochs: int, seed: int, draws: int) -> list[NDArray[np.int64]]:
    """Compute what `torch.randperm(count, generator=manual_seed(seed))` gives at every `draws`-th call, without torch.

    A Mersenne Twister, seeded as in 2002; entry i is exchanged with entry i + (a 32-bit word mod count - i).
    """
    twister = np.random.MT19937()
    seeded = np.random.RandomState(seed & 0xFFFF_FFFF)
    twister.state = cast("Any", seeded.get_state(legacy=False))
    left = np.arange(count, 1, -1)
    orders = []
    for _ in range(epochs):
        steps = (twister.random_raw(count - 1).astype(np.int64) % left).tolist()
        order = list(range(count))
        for i, step in enumerate(steps):
            order[i], order[i + step] = order[i + step], order[i]
        orders.append(np.array(order, np.int64))
        twister.random_raw((draws - 1) * (count - 1))
    return orders


def spread(paths: Sequence[T], most: int = SAMPLED_FILES) -> list[T]:
    """Up to `most` of them, evenly spaced."""
    places = np.linspace(0, len(paths) - 1, min(len(paths), most)).round().astype(int)
    return [paths[at] for at in np.unique(places)]


def _head(
    values: Sequence[NDArray[Any]], rows: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[Any] | None, NDArray[np.int64]]:
    """The first rows of each file, up to `SAMPLED_ROWS` in all, and the images that they are."""
    if not values:
        return None, np.zeros(0, np.int64)
    each = max(1, SAMPLED_ROWS // len(values))
    return np.concatenate([v[:each] for v in values]), np.concatenate([r[:each] for r in rows])


def _probs(batch: Batch) -> NDArray[np.float32]:
    return softmax(finite(batch.values, "outputs"), 1.0)
