"""`trainer recipes`: the settings of the papers' tables, with what is expected of them."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Json
from cli.output import print_fields, print_json, print_table


def trainer_recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One recipe, with all that it sets.")
    ] = None,
    json: Json = False,
) -> None:
    """List the recipes that `trainer run --recipe NAME` knows; with a name, one of them in full."""
    from dataclasses import asdict

    from trainer.recipes import RECIPES, card
    from trainer.recipes.finding import recipe_named

    if name is not None:
        shown = asdict(card(name, recipe_named(name)))
        if json:
            print_json(shown)
        else:
            print_fields(shown)
        return
    cards = [card(each, recipe) for each, recipe in RECIPES.items()]
    if json:
        print_json({"recipes": [asdict(each) for each in cards]})
        return
    from rich.table import Table

    table = Table("recipe", "what", "expected", box=None, pad_edge=False)
    for each in cards:
        table.add_row(each.name, each.summary, each.expected)
    print_table(table)
