"""Options of the commands that make a store: how it is cut and which files it has."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.teacher_options import WORK

ImagesPerShard = Annotated[
    int | None,
    typer.Option(help="Images in one commit.", show_default="by size", rich_help_panel=WORK),
]
CropsPerShard = Annotated[
    int | None,
    typer.Option(
        help="Crops in one file; divides M.", show_default="at most 100", rich_help_panel=WORK
    ),
]
Backend = Annotated[
    str, typer.Option(metavar="zarr|hdf5", help="Files of a new store.", rich_help_panel=WORK)
]
