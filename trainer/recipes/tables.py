"""Recipes as rows: what each setting is and who says so, and where two recipes differ."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from trainer.config import TrainConfig
from trainer.recipes.card import Recipe
from trainer.recipes.sources import Said


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One setting of a recipe, or one option of the command that makes its labels ("create --scale")."""

    setting: str
    value: object
    source: str
    other: object
    """What another source says; None, with an empty `other_source`, where none differs."""
    other_source: str


@dataclass(frozen=True, kw_only=True)
class DifferenceRow:
    """One setting that two recipes do not share; what a recipe does not say is at its default."""

    setting: str
    first: object
    second: object


def source_rows(recipe: Recipe) -> list[SourceRow]:
    """Every setting of a recipe in the order of `TrainConfig`, then those of its labels."""
    return [
        SourceRow(
            setting=setting,
            value=each.value,
            source=each.source,
            other=each.other,
            other_source=each.other_source,
        )
        for setting, each in _everything(recipe).items()
    ]


def differences(first: Recipe, second: Recipe) -> list[DifferenceRow]:
    """Settings, and options of the labels, in which two recipes differ."""
    one, other = _everything(first), _everything(second)
    # the labels here are no default, but every recipe says its own
    usual = TrainConfig(labels="ground-truth").to_mapping()
    rows = []
    for setting in dict.fromkeys([*one, *other]):
        values = [
            _plain(found[setting].value) if setting in found else usual.get(setting)
            for found in (one, other)
        ]
        if values[0] != values[1]:
            rows.append(DifferenceRow(setting=setting, first=values[0], second=values[1]))
    return rows


def _everything(recipe: Recipe) -> dict[str, Said]:
    order = [field.name for field in dataclasses.fields(TrainConfig)]
    settings = dict(sorted(recipe.sources.items(), key=lambda item: order.index(item[0])))
    labels = {f"create --{name.replace('_', '-')}": each for name, each in recipe.labels.items()}
    return settings | labels


def _plain(value: object) -> object:
    """As a config's `to_mapping` has it, so that a recipe's value and a default can be compared."""
    return list(value) if isinstance(value, tuple) else value
