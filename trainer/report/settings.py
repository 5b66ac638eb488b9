"""Which runs are repeats of one setting, and in what the settings differ."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

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
    """What all settings have in common, as far as it is not the default; kind of labels and student in any case."""
    usual = values_of(TrainConfig(labels="ground-truth"))
    apart = set(differing(settings))
    return {
        name: value
        for name, value in (settings[0].values if settings else {}).items()
        if name not in apart and (value != usual.get(name) or name in ("labels", "model"))
    }


def _common(names: Sequence[str]) -> str:
    """What the names of one setting's runs begin with, without "seed" and what joins it."""
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    prefix = "".join(letters[0] for letters in alike)
    return re.sub(r"[-_. /]*(seed|(?<=[-_. /])s)?[-_. /]*[0-9]*$", "", prefix) or names[0]


def _text(value: Any) -> str:  # noqa: ANN401 - any setting
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"
