"""A recipe: settings of a paper's table with the place that prints each, and a docstring that is its experiment card.

A release is read at one commit (`RELEASES`), so that a line number stays what it is. Where paper and release differ,
the one that is taken is `Said.value`, and `Said.other` names the other one.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from labelstore.errors import UsageError
from trainer.config import TrainConfig

PARTS = ("paper", "expected", "hardware", "labels", "command")
"""Lines of a docstring that every recipe has, e.g. "Paper: FKD Table 3"."""

RELEASES: Mapping[str, str] = {
    "FKD": "https://github.com/szq0214/FKD at afd5294, folder FKD; train_ViT_FKD.py lies in FKD_ViT, SLG is FKD_SLG",
    "ReLabel": "https://github.com/naver-ai/relabel_imagenet at 3d4824f; yaml is configs/relabel_train_resnet50.yaml, "
    "yaml (cutmix) the one beside it, as base.yaml; .py files but train.py lie in utils",
    "big_vision": "https://github.com/google-research/big_vision at 0127fb6, folder big_vision; bit_i1k.py lies in "
    "configs/proj/distill",
    "MEAL V2": "https://github.com/szq0214/MEAL-V2 at 59e6bca",
    "S2-BNN": "https://github.com/szq0214/S2-BNN at 6eeda81; .py files lie in Distillation_only/step1, kd_loss.py in "
    "its extensions",
    "SRe2L": "https://github.com/VILA-Lab/SRe2L at 8d00cba, folder SRe2L/validate",
    "HALD": "https://github.com/Jiacheng8/HALD at ffbca04; .py files, hyper.yaml lie in validate, relabel_slc.py in "
    "relabel, train.sh in validate/scripts/imagenet1k",
    "LPLD": "https://github.com/he-y/soft-label-pruning-for-dataset-distillation at 63eee18, folder "
    "relabel_and_validate; .yaml lies in cfg/reproduce",
}
"""First words of a source -> repository and commit. Where a table, section or appendix follows, it is the paper's."""

OURS = "ours"
"""First word of the source of a setting that nothing published prints; the reason follows."""


@dataclass(frozen=True)
class Said:
    """One setting, who says so, and what another source says."""

    value: object
    source: str
    other: object = None
    other_source: str = ""
    """Empty where no other source differs."""


Settings = Mapping[str, Said]
"""Settings by name, each with its source."""


def said(source: str, /, **values: object) -> dict[str, Said]:
    """Settings that one source prints.

    >>> said("FKD Table 12", epochs=300)
    {'epochs': Said(value=300, source='FKD Table 12', other=None, other_source='')}
    """
    return {name: Said(value, source) for name, value in values.items()}


def ours(reason: str, /, **values: object) -> dict[str, Said]:
    """Settings that nothing published prints, and why they are as they are."""
    return said(f"{OURS}: {reason}", **values)


class Recipe(Protocol):
    """Takes settings by name, which override its own; returns the config of a run."""

    __name__: str
    sources: Mapping[str, Said]
    """Every setting of the recipe, with its source."""
    labels: Mapping[str, Said]
    """Options of the `labelstore create` that makes its labels, by name; empty where the card tells more."""

    def __call__(self, **settings: object) -> TrainConfig:
        """UsageError for a setting that does not exist, or settings that do not go together."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One recipe as people look for it."""

    name: str
    summary: str
    paper: str
    """Table, where its settings are printed, and what is taken where paper and release differ."""
    expected: str
    """The paper's figure."""
    hardware: str
    labels: str
    """The label sets and masks that the store must have."""
    create: str
    """The command that makes these labels; empty where there is no single one."""
    command: str


RECIPES: dict[str, Recipe] = {}
"""Every recipe by name, in the order of the papers."""


def recipe(settings: Settings, labels: Settings | None = None) -> Callable[[object], Recipe]:
    """Make one of the `RECIPES` of these settings out of a function that has its name and its card, and no body."""

    def with_settings(described: object) -> Recipe:
        def made(**changes: object) -> TrainConfig:
            own = {name: each.value for name, each in settings.items()}
            return TrainConfig.from_mapping({**own, **changes})

        made.__doc__ = described.__doc__
        for name in ("__name__", "__qualname__", "__module__"):
            setattr(made, name, getattr(described, name))
        made.sources, made.labels = dict(settings), dict(labels or {})  # type: ignore[attr-defined]
        RECIPES[made.__name__] = cast(Recipe, made)
        return RECIPES[made.__name__]

    return with_settings


def recipe_named(name: str) -> Recipe:
    """The recipe of that name, hyphens as good as underscores; UsageError with the nearest one."""
    spelled = name.replace("-", "_")
    if spelled not in RECIPES:
        near = difflib.get_close_matches(spelled, RECIPES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no recipe {name!r}{hint}; `trainer recipes` lists them")
    return RECIPES[spelled]


def card(recipe: Recipe) -> Card:
    """The card of a recipe; a docstring without one of the parts is a mistake of ours (AssertionError)."""
    name = recipe.__name__
    text = inspect.getdoc(recipe) or ""
    summary, _, rest = text.partition("\n")
    marks = "|".join(part.capitalize() for part in PARTS)
    found = {
        match[1].lower(): " ".join(match[2].split())
        for match in re.finditer(
            rf"^({marks}): (.*?)(?=^(?:{marks}): |\Z)", rest, re.MULTILINE | re.DOTALL
        )
    }
    missing = [part for part in PARTS if part not in found]
    assert not missing, f"{name} says nothing about {missing}"
    return Card(name=name, summary=summary, create=create_command(recipe.labels), **found)


def create_command(labels: Settings) -> str:
    """The `labelstore create` of a recipe's labels, empty without any."""
    if not labels:
        return ""
    options = [
        text
        for name, each in labels.items()
        for text in (f"--{name.replace('_', '-')}", str(each.value))
    ]
    return shlex.join(
        ["labelstore", "create", "in1k.labels", "--images", "imagenet/train", *options]
    )


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One setting of a recipe, or one option of the command that makes its labels ("create --scale")."""

    setting: str
    value: object
    source: str
    other: object
    """The value of another source; None, with an empty `other_source`, where none differs."""
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
