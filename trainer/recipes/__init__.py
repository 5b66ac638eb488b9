"""Settings of the papers' tables, one function per row: `ferkd_resnet50(store=..., data=..., epochs=100)`.

Every function takes settings of `TrainConfig` by name, which override its own, and returns the config. Its docstring
is an experiment card: paper, expected figure, hardware, labels, command. Its `sources` say where each setting is
printed. None of the figures was repeated here: they are the papers'.
"""

from __future__ import annotations

# in the order of `RECIPES`
from trainer.recipes import ferkd_recipes, fkd_recipes, other_recipes  # noqa: F401
from trainer.recipes.recipe import (
    RECIPES,
    RELEASES,
    Card,
    Recipe,
    Said,
    card,
    differences,
    recipe_named,
    source_rows,
)

__all__ = [
    "RECIPES",
    "RELEASES",
    "Card",
    "Recipe",
    "Said",
    "card",
    "differences",
    "recipe_named",
    "source_rows",
]


def __getattr__(name: str) -> Recipe:
    if name in RECIPES:
        return RECIPES[name]
    raise AttributeError(f"module 'trainer.recipes' has no attribute {name!r}")
