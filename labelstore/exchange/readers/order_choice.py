"""Which of several orders the files of a source have: proved by what is in them, or stated, or else asked for.

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

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput
from labelstore.exchange.readers.image_orders import MEANINGS, Order, known_orders, stated_order
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource

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
        found = {"order": self.name, "order_is": self.how}
        return found if self.evidence is None else {**found, "proof": self.evidence.to_record()}


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
