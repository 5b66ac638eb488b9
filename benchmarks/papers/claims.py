"""What a paper claims, and whether the miniature bears it out: paired differences and their 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from trainer.report.paired import interval

Verdict = Literal["holds", "reversed", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`above` reaches more than `below`, as the paper's table says."""

    text: str
    above: str
    """Name of an arm, or several names joined by " | ": the best of them by its mean (hardest to beat when below)."""
    below: str
    paper: float | None
    """The paper's own difference in points of top-1; None where it gives an order only."""
    of: Literal["top1", "train_seconds"] = "top1"
    """Which figure of the runs is compared."""

    @property
    def unit(self) -> str:
        """What the difference is measured in."""
        return "points" if self.of == "top1" else "CPU s"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim, measured."""

    claim: Claim
    mean: float
    """In the claim's unit, above minus below."""
    ci95: float
    """Half width of the 95 % interval of the mean of the paired differences; NaN for one seed."""
    seeds: int
    verdict: Verdict


def half_width(values: Sequence[float]) -> float:
    """Half width of the 95 % interval of the mean of n values (Student's t); NaN for fewer than two."""
    half = interval(values)
    return math.nan if half is None else half


def judge(claim: Claim, values: Mapping[str, Mapping[int, float]]) -> Finding | None:
    """The finding over the seeds that both arms have; None where there is none. `values`: arm -> seed -> figure.

    >>> claim = Claim(text="b above a", above="b", below="a", paper=None)
    >>> runs = {"a": {0: 50.0, 1: 60.0, 2: 55.0}, "b": {0: 53.0, 1: 63.5, 2: 57.5}}
    >>> found = judge(claim, runs)
    >>> round(found.mean, 2), round(found.ci95, 2), found.seeds, found.verdict
    (3.0, 1.24, 3, 'holds')
    """
    above, below = _best(claim.above, values), _best(claim.below, values)
    if above is None or below is None:
        return None
    shared = sorted(set(values[above]) & set(values[below]))
    if not shared:
        return None
    differences = [values[above][seed] - values[below][seed] for seed in shared]
    centre, half = mean(differences), half_width(differences)
    verdict: Verdict = "undecided"
    if centre - half > 0:
        verdict = "holds"
    elif centre + half < 0:
        verdict = "reversed"
    return Finding(claim=claim, mean=centre, ci95=half, seeds=len(shared), verdict=verdict)


def _best(names: str, values: Mapping[str, Mapping[int, float]]) -> str | None:
    there = [name for name in names.split(" | ") if values.get(name)]
    if len(there) < len(names.split(" | ")):
        return None
    return max(there, key=lambda name: mean(values[name].values()))
