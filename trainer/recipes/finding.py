"""A recipe by its name, as the command line gives it."""

from __future__ import annotations

import difflib

from labelstore.errors import UsageError
from trainer.recipes import RECIPES
from trainer.recipes.card import Recipe


def recipe_named(name: str) -> Recipe:
    """The recipe of that name, hyphens as good as underscores; UsageError with the nearest one."""
    spelled = name.replace("-", "_")
    if spelled not in RECIPES:
        near = difflib.get_close_matches(spelled, RECIPES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no recipe {name!r}{hint}; `trainer recipes` lists them")
    return RECIPES[spelled]
