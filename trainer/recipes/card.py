"""What a recipe is, and what it says about itself: its docstring, read as an experiment card."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from trainer.config import TrainConfig
from trainer.recipes.sources import Said, Settings

PARTS = ("paper", "expected", "hardware", "labels", "command")
"""Lines of a docstring that every recipe has, e.g. "Paper: FKD Table 3"."""


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
    """What the store has to hold."""
    create: str
    """The command that makes these labels; empty where there is no single one."""
    command: str


def recipe(settings: Settings, labels: Settings | None = None) -> Callable[[object], Recipe]:
    """Make a recipe of these settings out of a function that has its name and its card, and no body."""

    def with_settings(described: object) -> Recipe:
        def made(**changes: object) -> TrainConfig:
            own = {name: each.value for name, each in settings.items()}
            return TrainConfig.from_mapping({**own, **changes})

        made.__doc__ = described.__doc__
        for name in ("__name__", "__qualname__", "__module__"):
            setattr(made, name, getattr(described, name))
        made.sources, made.labels = dict(settings), dict(labels or {})  # type: ignore[attr-defined]
        return cast(Recipe, made)

    return with_settings


def card(name: str, recipe: Recipe) -> Card:
    """The card of a recipe; a docstring without one of the parts is a mistake of ours (AssertionError)."""
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
