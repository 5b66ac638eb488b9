"""The program `trainer`: trains students from stored soft labels and evaluates them."""

from __future__ import annotations

import typer

from cli.errors import main
from cli.lazy_group import lazy_group
from cli.shared_options import Version

COMMANDS = {
    "run": "Train a student from stored labels, or from the ground truth.",
    "recipes": "List the recipes that `trainer run --recipe NAME` knows; with a name, one of them in full.",
    "evaluate": "Measure the top-1 and top-5 of a model on a folder of validation images.",
    "probe": "Train a linear classifier on a network's frozen features, and measure its top-1 and top-5.",
    "attention": "Draw what networks look at: Grad-CAM and guided backpropagation of several runs side by side "
    "(FKD Fig. 6).",
    "report": "Write one HTML file with what runs were trained on, how they went and how they compare, over seeds "
    "and by class.",
    "export": "Write a trained network's weights for other programs.",
}

HOMES = {
    "trainer_run": ("run", "recipes"),
    "trainer_evaluate": ("evaluate", "probe"),
    "trainer_sharing": ("report", "export"),
}
"""Module of `cli.commands` -> its commands; every other command has a module of its own name."""

commands = typer.Typer(
    cls=lazy_group(COMMANDS, HOMES, prefix="trainer_"),
    name="trainer",
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
