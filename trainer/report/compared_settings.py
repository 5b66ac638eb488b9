"""Runs that repeat one setting, in what settings differ, and by how much one beats another.

The difference is the mean over seeds that both were trained with, with its 95 % interval. Runs of one seed share their
initial weights and their drawing order, so that their difference scatters less than the runs themselves. The interval
is Student's t over seeds; with one seed there is none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from statistics import fmean, stdev
from typing import Any, Literal

from trainer.config import TrainConfig

NOT_COMPARED = ("seed", "class_names")
LETTERS = 160
"""Longest value that is shown."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs whose settings are equal but for the seed."""

    name: str
    runs: tuple[int, ...]
    """Numbers of the runs."""
    values: Mapping[str, str]
    """Everything that changes what is learnt, as text."""


def group_runs(configs: Mapping[int, TrainConfig], names: Sequence[str]) -> list[Setting]:
    """Settings in the order of their first runs; `names` are those of all runs."""
    found: dict[str, list[int]] = {}
    for number, config in configs.items():
        decisive = {k: v for k, v in config.decisive().items() if k != "seed"}
        found.setdefault(json.dumps(decisive, sort_keys=True), []).append(number)
    groups = list(found.values())
    called = [_common([names[number] for number in group]) for group in groups]
    return [
        Setting(
            # a name that two settings would share says nothing
            name=name if called.count(name) == 1 else names[group[0]],
            runs=tuple(group),
            values=values_of(configs[group[0]]),
        )
        for group, name in zip(groups, called, strict=True)
    ]


def values_of(config: TrainConfig) -> dict[str, str]:
    """Settings that change what is learnt, but for seed and class names; what they learnt from by its digests."""
    shown = {k: v for k, v in config.decisive().items() if k not in NOT_COMPARED}
    for name, value in dict(shown.pop("provenance", {})).items():
        shown[f"provenance.{name}"] = value
    return {name: _text(value) for name, value in shown.items()}


def differing(settings: Sequence[Setting]) -> list[str]:
    """Names of values that are not the same in all settings."""
    names = dict.fromkeys(name for setting in settings for name in setting.values)
    return [name for name in names if len({s.values.get(name) for s in settings}) > 1]


def common(settings: Sequence[Setting]) -> dict[str, str]:
    """Values that all settings share and that are not the default; kind of labels and student in any case."""
    usual = values_of(TrainConfig(labels="ground-truth"))
    apart = set(differing(settings))
    return {
        name: value
        for name, value in (settings[0].values if settings else {}).items()
        if name not in apart and (value != usual.get(name) or name in ("labels", "model"))
    }


def _common(names: Sequence[str]) -> str:
    """The common beginning of the names of one setting's runs, without "seed" and its separator."""
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    prefix = "".join(letters[0] for letters in alike)
    return re.sub(r"[-_. /]*(seed|(?<=[-_. /])s)?[-_. /]*[0-9]*$", "", prefix) or names[0]


def _text(value: Any) -> str:  # noqa: ANN401 - any setting
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


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
        """The second setting against the first, by the interval."""
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
