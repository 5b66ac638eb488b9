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
    "variants": "Derive a cheaper label set from a richer one without the teacher, and print the KL it costs.",
    "add-teacher": "Label the same crops with a further teacher, or the same one in another form.",
    "grow": "Add crops to every image of a store and label them; nothing is rewritten.",
    "drop": "Remove a label set, a mask or a crop plan, and free its space.",
    "verify": "Compare every committed shard, the metadata and the catalogue with their digests.",
    "repair": "Make damaged shards again, and only them: labels from images, boxes from the plan.",
    "gc": "Remove temporary files and orphans that killed workers left behind an hour ago or more.",
    "freeze": "Make a store read-only for good, with a manifest by which every copy can be checked.",
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
