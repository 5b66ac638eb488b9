"""What a paper claims, and what the runs say of it: paired differences, tested together.

Claims that were named as primary before their run (`primary`) are tested together by Holm's method (1979), which keeps the
chance of any false finding among them at 5 %; all others by Benjamini and Hochberg's (1995), which keeps the expected share
of false ones among the findings at 5 %. Beside each stands the smallest effect that it would have seen with a power of 80 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Literal

import numpy as np
from scipy import optimize, stats

from trainer.report.compared_settings import interval

Verdict = Literal["holds", "reversed in this setting", "cannot be seen at this size", "undecided"]
LEVEL = 0.05
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`above` reaches more than `below`, as the paper's table says."""

    text: str
    above: str
    """Name of an arm, or several names joined by " | ": the best of them by its mean (hardest to beat when below)."""
    below: str
    paper: float | None
    """The paper's own difference in points of top-1; None where it gives an order only."""
    of: str = "top1"
    """Which figure of the runs is compared: a field of `Outcome`, or one of its `figures`."""
    unit: str = "points"
    """What the difference is measured in."""
    primary: bool = False
    """Named before the run as one of the few claims that it is for."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim, measured."""

    claim: Claim
    mean: float
    """In the claim's unit, above minus below."""
    ci95: float
    """Half width of the 95 % interval of the mean of the paired differences; NaN for one seed."""
    seeds: int
    p: float
    """Two-sided, of the paired t test; NaN for one seed."""
    deviation: float
    """Standard deviation of the paired differences; NaN for one seed."""
    adjusted: float = math.nan
    """p as its method adjusts it among the claims tested together: the claim is seen where it is below 5 %."""
    visible: float = math.nan
    """Smallest difference that would have been seen with a power of 80 %, at the level that its method asked for."""

    @property
    def verdict(self) -> Verdict:
        """What the difference and the test say."""
        if self.adjusted < LEVEL:
            return "holds" if self.mean > 0 else "reversed in this setting"
        paper = self.claim.paper
        # without a second seed nothing can be seen
        if paper is not None and not self.visible <= abs(paper):
            return "cannot be seen at this size"
        return "undecided"


def half_width(values: Sequence[float]) -> float:
    """Half width of the 95 % interval of the mean of n values (Student's t); NaN for fewer than two."""
    half = interval(values)
    return math.nan if half is None else half


def measure(claim: Claim, values: Mapping[str, Mapping[int, float]]) -> Finding | None:
    """The difference over the seeds that both arms have; None where there is none. `values`: arm -> seed -> figure.

    >>> claim = Claim(text="b above a", above="b", below="a", paper=None)
    >>> runs = {"a": {0: 50.0, 1: 60.0, 2: 55.0}, "b": {0: 53.0, 1: 63.5, 2: 57.5}}
    >>> found = measure(claim, runs)
    >>> round(found.mean, 2), round(found.ci95, 2), found.seeds, round(found.p, 4)
    (3.0, 1.24, 3, 0.0091)
    """
    above, below = _best(claim.above, values), _best(claim.below, values)
    if above is None or below is None:
        return None
    shared = sorted(set(values[above]) & set(values[below]))
    if not shared:
        return None
    differences = [values[above][seed] - values[below][seed] for seed in shared]
    centre, p, deviation = mean(differences), math.nan, math.nan
    if len(shared) > 1:
        deviation = stdev(differences)
        error = deviation / math.sqrt(len(shared))
        # runs that agree to the last digit have no error: equal arms are no finding, different ones are
        p = (
            2 * float(stats.t.sf(abs(centre) / error, len(shared) - 1))
            if error
            else float(not centre)
        )
    return Finding(
        claim=claim,
        mean=centre,
        ci95=half_width(differences),
        seeds=len(shared),
        p=p,
        deviation=deviation,
    )


def judge(measured: Sequence[Finding], *, named: int = 0) -> list[Finding]:
    """The findings with what the tests together say of each: primary claims by Holm, others by Benjamini-Hochberg.

    `named` primary claims count, also those that have not run yet. A claim that several tables state on the same runs is
    one test.
    """
    judged = []
    for primary in (True, False):
        p = {
            _test(one): one.p for one in measured if one.claim.primary == primary and one.seeds > 1
        }
        count = max(named, len(p)) if primary else len(p)
        values = list(p.values())
        tested = holm(values, count) if primary else benjamini_hochberg(values)
        adjusted = dict(zip(p, tested, strict=True))
        seen = sum(value < LEVEL for value in adjusted.values())
        # the level that the next claim would have had to pass
        level = (
            LEVEL / max(count - seen, 1)
            if primary
            else LEVEL * min(seen + 1, len(p)) / max(len(p), 1)
        )
        judged += [
            replace(
                one,
                adjusted=adjusted.get(_test(one), math.nan),
                visible=smallest_visible(one.deviation, one.seeds, level),
            )
            for one in measured
            if one.claim.primary == primary
        ]
    order = {id(one.claim): at for at, one in enumerate(measured)}
    return sorted(judged, key=lambda one: order[id(one.claim)])


def holm(p: Sequence[float], count: int | None = None) -> list[float]:
    """p adjusted by Holm's method: (n - i) p of the i-th smallest, never below the one before; n is `count` or all.

    >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])], holm([0.01], 5)
    ([0.03, 0.06, 0.06], [0.05])
    """
    order = np.argsort(p)
    steps = np.asarray(p, float)[order] * ((count or len(p)) - np.arange(len(p)))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """p adjusted by Benjamini and Hochberg's method: the share of false findings if all up to this one are taken.

    >>> [round(value, 3) for value in benjamini_hochberg([0.01, 0.04, 0.03])]
    [0.03, 0.04, 0.04]
    """
    return [float(value) for value in stats.false_discovery_control(p)] if p else []


def smallest_visible(deviation: float, seeds: int, level: float = LEVEL) -> float:
    """The true difference that a paired t test at `level` sees with a power of 80 %, where differences scatter so.

    NaN for one seed. A textbook's value (Cohen 1988): an effect of one standard deviation asks for 10 pairs.

    >>> round(smallest_visible(1.0, 10), 2)
    1.0
    """
    if seeds < 2 or math.isnan(deviation):
        return math.nan
    freedom = seeds - 1
    border = stats.t.isf(level / 2, freedom)

    def lacking(shift: float) -> float:
        return float(stats.nct.sf(border, freedom, shift)) - POWER

    shift = optimize.brentq(lacking, 0.0, 3 * border + 10)
    return float(shift) * deviation / math.sqrt(seeds)


def _test(finding: Finding) -> tuple[str, float, float]:
    return finding.claim.of, finding.mean, finding.p


def _best(names: str, values: Mapping[str, Mapping[int, float]]) -> str | None:
    there = [name for name in names.split(" | ") if values.get(name)]
    if len(there) < len(names.split(" | ")):
        return None
    return max(there, key=lambda name: mean(values[name].values()))
