"""The program `trainer`: trains students from stored soft labels and evaluates them."""

from __future__ import annotations

import typer

from cli.errors import main
from cli.lazy_group import lazy_group
from cli.options import Version

COMMANDS = {
    "run": "Train a student from stored labels, or from the ground truth.",
    "recipes": "List the settings of the papers' tables, to start a run from.",
    "evaluate": "Measure the top-1 and top-5 of a model on a folder of validation images.",
    "probe": "Measure a linear classifier on a network's frozen features.",
    "export": "Write a student's weights for timm, torchvision or others.",
}

commands = typer.Typer(
    cls=lazy_group(COMMANDS, prefix="trainer_"),
    name="trainer",
    add_completion=False,
    rich_markup_mode=None,
)


@commands.callback()
def trainer(version: Version = False) -> None:
    """Train students from the soft labels of a store."""


def app() -> None:
    """Entry point of the installed program."""
    main(commands, "trainer")


if __name__ == "__main__":
    app()
