"""The program `labelstore`: makes, reads and keeps stores of soft labels."""

from __future__ import annotations

import typer

from cli.errors import main
from cli.lazy_group import lazy_group
from cli.options import Version

COMMANDS = {
    "create": "Label every crop of an image folder with a teacher; resumes or joins a store that exists.",
    "info": "Show what a store holds: images, crop plans, teachers, label sets, masks, progress.",
    "stats": "Show how sure the teacher is of its crops (FerKD Table 1) and what the labels weigh.",
    "calibrate": "Make a mask: which crops a student skips and which get the ground truth (FerKD Eq. 4).",
    "demo-images": "Write a small image folder to try things on: digits set into photographs.",
}

commands = typer.Typer(
    cls=lazy_group(COMMANDS), name="labelstore", add_completion=False, rich_markup_mode=None
)


@commands.callback()
def labelstore(version: Version = False) -> None:
    """The place where soft labels for vision models live."""


def app() -> None:
    """Entry point of the installed program."""
    main(commands, "labelstore")


if __name__ == "__main__":
    app()
