"""What a recipe says about itself: its docstring, read as an experiment card."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.config import TrainConfig

Recipe = Callable[..., TrainConfig]
"""Takes settings by name, which override its own; returns the config of a run."""

PARTS = ("paper", "expected", "hardware", "labels", "command")
"""Lines of a docstring that every recipe has, e.g. "Paper: FKD Table 3"."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One recipe as people look for it."""

    name: str
    summary: str
    paper: str
    """Table, and where its settings are printed."""
    expected: str
    """The paper's figure."""
    hardware: str
    labels: str
    """What the store has to hold."""
    command: str


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
    return Card(name=name, summary=summary, **found)


def config_of(defaults: Mapping[str, object], settings: Mapping[str, object]) -> TrainConfig:
    """A recipe's settings, overridden by those that were given; UsageError for one that does not exist."""
    return TrainConfig.from_mapping({**defaults, **settings})
