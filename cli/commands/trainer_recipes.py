"""`trainer recipes`: the settings of the papers' tables, what is expected of them, and where each is printed."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Json
from cli.output import print_fields, print_json, print_table


def trainer_recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One recipe, with all that it sets.")
    ] = None,
    sources: Annotated[
        bool,
        typer.Option(
            "--sources", help="Every setting of the recipe, and the table or file that prints it."
        ),
    ] = False,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option("--diff", metavar="A B", help="The settings in which two recipes differ."),
    ] = None,
    json: Json = False,
) -> None:
    """List the recipes that `trainer run --recipe NAME` knows; with a name, one of them in full."""
    from dataclasses import asdict

    from labelstore.errors import UsageError
    from trainer.recipes import RECIPES, card
    from trainer.recipes.finding import recipe_named

    if diff is not None:
        if name is not None or sources:
            raise UsageError("--diff A B stands alone: leave out NAME and --sources")
        _print_differences(diff, json=json)
    elif sources:
        if name is None:
            raise UsageError(
                "--sources without a recipe: give its name; `trainer recipes` lists them"
            )
        _print_sources(name, json=json)
    elif name is not None:
        recipe = recipe_named(name)
        shown = asdict(card(recipe.__name__, recipe))
        if json:
            print_json(shown)
        else:
            print_fields({part: text for part, text in shown.items() if text})
    else:
        cards = [card(each, recipe) for each, recipe in RECIPES.items()]
        if json:
            print_json({"recipes": [asdict(each) for each in cards]})
        else:
            _print_table(
                ("recipe", "what", "expected"),
                [(each.name, each.summary, each.expected) for each in cards],
            )


def _print_sources(name: str, *, json: bool) -> None:
    from dataclasses import asdict

    from trainer.recipes import RELEASES
    from trainer.recipes.finding import recipe_named
    from trainer.recipes.tables import source_rows

    recipe = recipe_named(name)
    rows = source_rows(recipe)
    text = " ".join(f"{row.source} {row.other_source}" for row in rows)
    releases = {release: where for release, where in RELEASES.items() if f"{release} " in text}
    if json:
        print_json(
            {
                "recipe": recipe.__name__,
                "settings": [asdict(row) for row in rows],
                "releases": [{"name": each, "where": where} for each, where in releases.items()],
            }
        )
        return
    _print_table(
        ("setting", "value", "source", "elsewhere"),
        [
            (
                row.setting,
                _shown(row.value),
                row.source,
                f"{_shown(row.other)}: {row.other_source}" if row.other_source else "",
            )
            for row in rows
        ],
    )
    print()
    print_fields(releases)


def _print_differences(names: tuple[str, str], *, json: bool) -> None:
    from dataclasses import asdict

    from trainer.recipes.finding import recipe_named
    from trainer.recipes.tables import differences

    first, second = (recipe_named(name) for name in names)
    rows = differences(first, second)
    if json:
        print_json(
            {
                "first": first.__name__,
                "second": second.__name__,
                "differences": [asdict(row) for row in rows],
            }
        )
        return
    _print_table(
        ("setting", first.__name__, second.__name__),
        [(row.setting, _shown(row.first), _shown(row.second)) for row in rows],
    )


def _print_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*heads, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    print_table(table)


def _shown(value: object) -> str:
    """A value as --set takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_shown(each)}" for name, each in value.items()) + "}"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
