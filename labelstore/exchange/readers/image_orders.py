"""Which image a position is: the orders that a data set may have had, and the one that the files prove.

Several formats name an image by its position in the data set of the program that wrote them, and nothing else:

    folder    torchvision's ImageFolder: class folders sorted as text, files sorted as text (_10, _1000, _3)
    natural   timm's readers: whole paths, letters in lower case, numbers by their value (_3, _10, _1000)
    listed    as the images are given: rows of a list, members of a tar file
    named     the file's name is its position (0.png, 1.png, ...)

or a file of names: one per line, or JSON as Food-101's `train.json` has it (a list, or a list per class).

An order is a hypothesis: that label row i belongs to image r(i). What speaks for it is a matrix a, n x n: how well
row i fits image r(k), for n sampled rows. Under the right order the diagonal stands out; under an order that has
nothing to do with the images it is like any other. So the sum of the diagonal is compared with what it is over all n!
ways to deal the same images to the same rows. Its mean and variance over these are known (Hoeffding, "A combinatorial
central limit theorem", 1951):

    mean = n a..        variance = sum_ik (a_ik - a_i. - a_.k + a..)^2 / (n - 1)

and z = (sum - mean) / sqrt(variance) has the chance level P(Z >= z), at least 1 / n!. Where images are compared with
their neighbours only (so that a shuffle within a class is noticed), sums, means and variances add up over the groups.

Rule: an order is *proved* where the chance level is at most `CHANCE`, everything fits that must (a box lies inside its
image), and this holds for no other candidate. Kinds of evidence are asked in turn, and the first that decides counts.
An order that is stated is taken, unless another one is proved or it fits like any other.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.stated import Stated
from labelstore.images import ImageFolder, ImageSource
from labelstore.untrusted.refusal import Refused, named, read_bytes

Order = NDArray[np.int64]
"""(positions,) image row of each position, -1 where the folder has no such image."""

MEANINGS = {
    "folder": "sorted as text, as torchvision's ImageFolder lists a folder",
    "natural": "numbers in names by their value, as timm's readers list a folder or train.tar",
    "listed": "as the images are given here",
    "named": "a file's name is its position",
}
MAX_ORDER_BYTES = 1 << 30


def known_orders(images: ImageSource, names: Sequence[str] = tuple(MEANINGS)) -> dict[str, Order]:
    """Those of the orders of `MEANINGS` that these images can have, equal ones once."""
    distinct: dict[str, Order] = {}
    for name in names:
        order = _by_name(images) if name == "named" else stated_order(name, images)
        if order is not None and not any(np.array_equal(order, o) for o in distinct.values()):
            distinct[name] = order
    return distinct


def stated_order(name: str, images: ImageSource) -> Order:
    """The order of that name, or in the file of that path; UsageError for neither."""
    if name == "listed":
        return np.arange(len(images))
    if name == "folder":
        return folder_order(images)
    if name == "natural":
        return natural_order(images)
    if name == "named":
        order = _by_name(images)
        if order is None:
            raise RejectedInput(
                f"order named: files of {images.root} are not called 0, 1, 2, ...; state another order"
            )
        return order
    if not Path(name).is_file():
        raise UsageError(
            f"order {name[:100]}: choose {', '.join(MEANINGS)}, or give a file that lists the images in order"
        )
    return order_of_file(Path(name), images)


def folder_order(images: ImageSource) -> Order:
    """Rows as torchvision's ImageFolder lists the same files in one folder per class."""
    if isinstance(images, ImageFolder):
        return np.arange(len(images))
    return folder_order_of(images.keys, [images.classes[number] for number in images.class_ids])


def folder_order_of(keys: Sequence[str], class_names: Sequence[str]) -> Order:
    """The same of keys; the class name stands for the folder of a key that lies in none."""
    common = os.path.commonpath([key.rpartition("/")[0] for key in keys])
    # folders that all images lie in are above the class folders, unless there is one class
    above = len(common.split("/")) if common and len(set(class_names)) > 1 else 0

    def place(row: int) -> tuple[str, str, str]:
        *folders, file = keys[row].split("/")[above:]
        return folders[0] if folders else class_names[row], "/".join(folders), file

    return np.array(sorted(range(len(keys)), key=place), np.int64)


def natural_order(images: ImageSource) -> Order:
    """Rows as timm's readers sort them (`timm.utils.natural_key`)."""
    keys = [_natural(key) for key in images.keys]
    first = folder_order(images)  # names that differ in case alone keep this order
    return np.array(sorted(first.tolist(), key=keys.__getitem__), np.int64)


def _natural(text: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", text.lower())]


def _by_name(images: ImageSource) -> Order | None:
    """Position = the number that is the file's name; None where the names are not 0 to N - 1."""
    rows = [-1] * len(images)
    for row, key in enumerate(images.keys):
        stem = key.rpartition("/")[2].partition(".")[0]
        position = int(stem) if re.fullmatch(r"[0-9]{1,9}", stem) else len(rows)
        if position >= len(rows) or rows[position] >= 0:
            return None
        rows[position] = row
    return np.array(rows, np.int64)


def order_of_file(path: Path, images: ImageSource) -> Order:
    """The order that a file lists; RejectedInput where it lists an image twice, or does not list one of the folder."""
    rows = rows_by_name(images)
    with named(path):
        try:
            text = read_bytes(path, MAX_ORDER_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Refused("is no text in UTF-8") from None
        names = list(_names(text, is_json=path.suffix.lower() == ".json"))
        order = np.array([rows.get(name.removeprefix("./"), -1) for name in names], np.int64)
        counts = np.bincount(order[order >= 0], minlength=len(images))
        if (counts > 1).any():
            raise Refused(f"lists image {images.keys[int(counts.argmax())]} twice")
        if not counts.all():
            missing = np.flatnonzero(counts == 0)
            raise Refused(
                f"does not list image {images.keys[missing[0]]} of {images.root} ({len(missing)} of {len(images)} "
                "are missing): list all images of the data set, each by its path in the folder"
            )
    return order


def _names(text: str, *, is_json: bool) -> Iterator[str]:
    if not is_json:
        yield from (line.strip() for line in text.splitlines() if line.strip())
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("is no JSON") from None
    groups = list(value.values()) if isinstance(value, Mapping) else [value]
    for group in groups:
        if not isinstance(group, list) or not all(isinstance(name, str) for name in group):
            raise Refused("is neither a list of names nor a list of names per class")
        yield from group


def rows_by_name(images: ImageSource) -> dict[str, int]:
    """Image rows by path, by file name, and by both without the ending; names of several images are left out."""
    names: dict[str, int] = {}
    for row, key in enumerate(images.keys):
        file = key.rpartition("/")[2]
        for name in {key, file, key.rpartition(".")[0], file.rpartition(".")[0]}:
            names[name] = -1 if name in names else row
    # a whole path is one image's, whatever other images are called without their ending
    names |= {key: row for row, key in enumerate(images.keys)}
    return {name: row for name, row in names.items() if row >= 0 and name}


def files_of_positions(order: Order, count: int, name: Callable[[int], str]) -> list[str]:
    """Per image row the file that is called by its position."""
    names = [""] * count
    for position, row in enumerate(order.tolist()):
        if row >= 0:
            names[row] = name(position)
    return names


def check_positions(stems: Sequence[str], source: Path, images: ImageSource, order: Order) -> None:
    """`check_count` where files that belong to no image are called by positions beyond the order."""
    positions = [int(stem) for stem in stems if re.fullmatch(r"[0-9]{1,12}", stem)]
    if positions and max(positions) >= len(order):
        check_count(1 + max(positions), "its files are of", images, order, source)


def check_count(count: int, what: str, images: ImageSource, order: Order, source: Path) -> None:
    """RejectedInput where the files are of another number of images than the order, so that positions are shifted."""
    if count != len(order):
        raise RejectedInput(
            f"{source}: {what} {count:,} images, and {images.root} has {len(order):,}, so that positions mean other "
            "images; give the images that the files were made from, or state order as a file that lists them all"
        )


CHANCE = 1e-4
"""Largest chance level that proves an order."""
TELLING, AT_CHANCE = 32, 0.01
"""A stated order is refused where so many rows do not all fit, and fit no better than this chance level."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How well rows and images fit under one order."""

    kind: str
    """What was compared, as messages call it: "boxes", "the ground truth", ..."""
    rows: int
    """n."""
    found: float
    """Mean of the diagonal: the share of boxes that fit, or the mean agreement."""
    expected: float
    """Its mean over all ways to deal the images to the rows."""
    z: float
    chance: float
    """Probability of such a z, or more, if the order had nothing to do with the images."""
    whole: bool
    """Whether all rows fit that must: under the right order all boxes do."""

    def __str__(self) -> str:
        return (
            f"{self.kind} of {self.rows} rows: {self.found:.3g} where chance gives {self.expected:.3g}, "
            f"z = {self.z:.1f}, p = {self.chance:.1g}"
        )

    def to_record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kind": self.kind,
            "rows": self.rows,
            "found": self.found,
            "expected": self.expected,
            "z": self.z,
            "p": self.chance,
        }


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The order that is taken, and why."""

    name: str
    how: str
    """`proved`, `stated`, or `only`: the format can have no other."""
    evidence: Evidence | None

    def to_record(self) -> dict[str, Any]:
        """As a label set's facts have it."""
        record = {"order": self.name, "order_is": self.how}
        return record if self.evidence is None else {**record, "proof": self.evidence.to_record()}


def weigh(kind: str, groups: Sequence[NDArray[Any]], *, must_fit: bool = False) -> Evidence | None:
    """Evidence of square matrices `a` (see above), one per group of neighbours; None where they cannot tell.

    `must_fit`: entries are 0 or 1, and under the right order the whole diagonal is 1.

    >>> weigh("boxes", [np.eye(9)]).z
    8.0
    """
    rows, found, mean, variance, log_ways = 0, 0.0, 0.0, 0.0, 0.0
    for group in groups:
        a, n = np.asarray(group, np.float64), len(group)
        if n < 2:
            continue
        centred = a - a.mean(0) - a.mean(1)[:, None] + a.mean()
        rows += n
        found += float(np.trace(a))
        mean += n * float(a.mean())
        variance += float((centred**2).sum()) / (n - 1)
        log_ways += math.lgamma(n + 1)
    if variance <= 1e-12 * max(rows, 1):  # any image would do for any row
        return None
    z = (found - mean) / math.sqrt(variance)
    return Evidence(
        kind=kind,
        rows=rows,
        found=found / rows,
        expected=mean / rows,
        z=z,
        chance=max(0.5 * math.erfc(z / math.sqrt(2)), math.exp(-log_ways)),
        whole=not must_fit or found == rows,
    )


def choose(
    candidates: Mapping[str, str],
    weighed: Callable[[str], Sequence[Evidence | None]],
    *,
    stated: str | None,
    complete: bool,
    source: object,
    question: str,
) -> Chosen:
    """One of the candidates (name -> meaning); `weighed(name)` is the evidence for it, the same kinds for each.

    `complete`: the format can have no other order than these, so that a single one needs no proof. RejectedInput with
    the question and the candidates where nothing decides, and for a stated order that is disproved.
    """
    if complete and len(candidates) == 1 and stated is None:
        return Chosen(name=next(iter(candidates)), how="only", evidence=None)
    evidence = {name: list(weighed(name)) for name in candidates}
    proved = _proved(evidence)
    if stated is not None:
        if proved is not None and proved[0] != stated:
            raise RejectedInput(
                f"{source}: order {stated} was stated, and {proved[0]} is proved ({proved[1]}): leave order out"
            )
        seen = [found for found in evidence.get(stated, []) if found is not None]
        best = min(seen, key=lambda found: found.chance, default=None)
        telling = best is not None and best.rows >= TELLING and best.found < 1
        if best is not None and telling and best.chance > AT_CHANCE:
            raise RejectedInput(
                f"{source}: order {stated} was stated, and fits as well as any other would ({best}): are these the "
                "images that the files were made from, and was all else stated rightly?"
            )
        return Chosen(name=stated, how="stated", evidence=best)
    if proved is not None:
        return Chosen(name=proved[0], how="proved", evidence=proved[1])
    looked = "; ".join(
        f"{name}: " + (", ".join(str(e) for e in found if e is not None) or "no evidence")
        for name, found in evidence.items()
    )
    raise RejectedInput(
        f"{source}: {question}, and nothing in the files proves which order that was ({looked}): state order: "
        + ", or ".join(f"{name} ({meaning})" for name, meaning in candidates.items())
    )


def _proved(evidence: Mapping[str, Sequence[Evidence | None]]) -> tuple[str, Evidence] | None:
    for of_kind in zip(*evidence.values(), strict=True):
        likely = {
            name: found
            for name, found in zip(evidence, of_kind, strict=True)
            if found is not None and found.whole and found.chance <= CHANCE
        }
        if len(likely) == 1:
            return next(iter(likely.items()))
    return None


def positions_of(
    source: Path,
    images: ImageSource,
    stated: Stated,
    weighed: Callable[[Order], Sequence[Evidence | None]],
    *,
    question: str,
    names: Sequence[str] = tuple(MEANINGS),
    complete: bool = False,
) -> tuple[Order, Chosen]:
    """The order of the data set whose positions the files give, among those of `image_orders`.

    `names`: the orders that the format can have had; `complete`: no others, so that a single one needs no proof.
    """
    candidates = known_orders(images, names)
    if stated.order is not None:
        candidates[stated.order] = stated_order(stated.order, images)
    chosen = choose(
        {name: MEANINGS.get(name, "as that file lists the images") for name in candidates},
        lambda name: weighed(candidates[name]),
        stated=stated.order,
        complete=complete,
        source=source,
        question=question,
    )
    return candidates[chosen.name], chosen
