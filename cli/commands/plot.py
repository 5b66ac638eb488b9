"""`labelstore plot`: a picture of a label set in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json, LabelSet, Seed, Store
from cli.output import print_json
from cli.picture_output import check_picture, write_picture


def plot(
    store: Store,
    name: Annotated[
        str,
        typer.Argument(help="histogram, cumulative, centres, heatmap, area, classes or regions."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Picture to write.", show_default="NAME.png"),
    ] = None,
    label_set: LabelSet = None,
    mask: Annotated[
        str | None, typer.Option(metavar="NAME", help="Mask, for the plot regions.")
    ] = None,
    sample: Annotated[
        int, typer.Option(metavar="CROPS", help="Crops of a picture that shows single ones.")
    ] = 20_000,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Draw a label set: how sure the teacher is, where the crops lie, what a mask does (FerKD Fig. 1 and 2)."""
    import labelstore
    from labelstore import report

    path = out or Path(f"{name}.png")
    check_picture(path)
    with labelstore.open(store, readonly=True) as opened:
        figure = report.plot(opened.label_set(label_set), name, mask=mask, sample=sample, seed=seed)
    write_picture(figure, path)
    if json:
        print_json({"store": store, "plot": name, "out": path})
    else:
        print(f"wrote {path}")
