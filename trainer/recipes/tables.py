"""Recipes as rows: what each setting is and who says so, and where two recipes differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
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
    """Every setting of a recipe in the order of `TrainConfig`, then the options that make its labels."""
    every = _everything(recipe)
    return [
        SourceRow(
            setting=setting,
            value=every[setting].value,
            source=every[setting].source,
            other=every[setting].other,
            other_source=every[setting].other_source,
        )
        for setting in _in_order(every)
    ]


def differences(first: Recipe, second: Recipe) -> list[DifferenceRow]:
    """Settings, and options that make the labels, in which two recipes differ, in the order of `source_rows`."""
    one, other = _everything(first), _everything(second)
    # the labels here are no default, but every recipe says its own
    usual = TrainConfig(labels="ground-truth").to_mapping()
    rows = []
    for setting in _in_order([*one, *other]):
        values = [
            _plain(every[setting].value) if setting in every else usual.get(setting)
            for every in (one, other)
        ]
        if values[0] != values[1]:
            rows.append(DifferenceRow(setting=setting, first=values[0], second=values[1]))
    return rows


def _everything(recipe: Recipe) -> dict[str, Said]:
    labels = {f"create --{name.replace('_', '-')}": each for name, each in recipe.labels.items()}
    return {**recipe.sources, **labels}


def _in_order(settings: Iterable[str]) -> list[str]:
    """Each once: fields as `TrainConfig` has them, then what is none of them."""
    named = dict.fromkeys(settings)
    fields = [field.name for field in dataclasses.fields(TrainConfig) if field.name in named]
    return list(dict.fromkeys([*fields, *named]))


def _plain(value: object) -> object:
    """As a config's `to_mapping` has it, so that a recipe's value and a default can be compared."""
    return list(value) if isinstance(value, tuple) else value
