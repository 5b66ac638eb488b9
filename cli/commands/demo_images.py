"""`labelstore demo-images`: a small data set that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import DryRun, Json, numbers
from cli.output import print_json
from cli.progress import Progress


def demo_images(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Other pictures for another seed.")] = 0,
    teacher: Annotated[int, typer.Option(help="Images in teacher/.")] = 4000,
    train: Annotated[
        int, typer.Option(help="Images in train/, all of them in teacher/ too.")
    ] = 1000,
    val: Annotated[int, typer.Option(help="Images in val/.")] = 1000,
    sides: Annotated[
        str,
        typer.Option(metavar="LOW,HIGH", help="Shortest and longest side of a picture, in pixels."),
    ] = "160,256",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write a small image folder to try things on: digits set into photographs.

    An interrupted folder is completed, a complete one is left as it is.
    """
    low, high = numbers(sides, "--sides", "LOW", "HIGH")
    if dry_run:
        record = {"folder": folder, "teacher": teacher, "train": train, "val": val}
        if json:
            print_json(record)
        else:
            print(f"would write {teacher} teacher, {train} train and {val} val images to {folder}")
        return

    from labelstore.testing.demo_folder import make_demo_images

    with Progress("demo images", "images") as progress:
        made = make_demo_images(
            folder,
            seed=seed,
            teacher=teacher,
            train=train,
            val=val,
            sides=(int(low), int(high)),
            progress=progress,
        )
    if json:
        print_json(made)
    else:
        print(made)
