"""By how much one setting beats another: the mean over seeds that both were trained with, and its 95 % interval.

Runs of one seed share their initial weights and their drawing order, so that their difference scatters less than the
runs themselves. The interval is Student's t over seeds; with one seed there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Second setting minus the first, in the unit of the values."""

    first: int
    second: int
    """Numbers of the settings."""
    seeds: tuple[int, ...]
    """That both have."""
    mean: float
    ci95: float | None
    """Half width of the 95 % interval of the mean; None with fewer than two seeds."""

    @property
    def verdict(self) -> Literal["higher", "lower", "undecided"]:
        """What the interval says of the second setting."""
        if self.ci95 is None or abs(self.mean) <= self.ci95:
            return "undecided"
        return "higher" if self.mean > 0 else "lower"

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"verdict": self.verdict}


def paired_difference(
    first: int, second: int, values: Sequence[Mapping[int, Sequence[float]]]
) -> PairedDifference | None:
    """Compares two settings, `values[setting][seed]` their results; None where they share no seed.

    Several runs of one seed count as their mean.
    """
    one, two = values[first], values[second]
    seeds = tuple(sorted(seed for seed in one if one[seed] and two.get(seed)))
    if not seeds:
        return None
    differences = [fmean(two[seed]) - fmean(one[seed]) for seed in seeds]
    return PairedDifference(
        first=first,
        second=second,
        seeds=seeds,
        mean=fmean(differences),
        ci95=interval(differences),
    )


def interval(values: Sequence[float]) -> float | None:
    """Half width of the 95 % interval of the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    return student_t(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def student_t(freedom: int) -> float:
    """97.5 % point of Student's t with that many degrees of freedom.

    >>> round(student_t(1), 3), round(student_t(4), 3)
    (12.706, 2.776)
    """
    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, freedom) < 0.95:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| <= t), the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom % 2 == 0:
        term = total = 1.0
        for k in range(1, freedom // 2):
            term *= (2 * k - 1) / (2 * k) * cosine**2
            total += term
        return sine * total
    term = total = cosine if freedom > 1 else 0.0
    for k in range(1, (freedom - 1) // 2):
        term *= 2 * k / (2 * k + 1) * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total)
