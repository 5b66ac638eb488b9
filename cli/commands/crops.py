"""`labelstore crops`: a table with one row per crop."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.frame_output import Format, Out, chosen_format, write_rows
from cli.options import Json, LabelSet, Seed, Store


def crops(
    store: Store,
    label_set: LabelSet = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME", help="Columns, separated by commas; --columns help lists them."
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help='Only crops that satisfy it: "area < 0.1 and max_probability < 0.2".',
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="KEY,KEY", help="Only crops of these images: keys or row numbers."),
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER|SHARE", help="So many of them, or below 1 a share of all crops."
        ),
    ] = None,
    seed: Seed = 0,
    mask: Annotated[
        str | None, typer.Option(metavar="NAME", help="Mask for the column region.")
    ] = None,
    format: Format = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Print a table with one row per crop: box, flip, probabilities, entropy, the teacher's class.

    Only the arrays that the columns need are read, one image block at a time.
    """
    import labelstore
    from labelstore.analysis.arrow_batches import crop_batches
    from labelstore.blocks.columns import COLUMNS

    form = chosen_format(format, out, json=json)
    if columns == "help":
        for name, column in COLUMNS.items():
            print(f"{name:<26}{column.about}")
        return
    with labelstore.open(store, readonly=True) as opened:
        labels = opened.label_set(label_set)
        reader = crop_batches(
            labels,
            None if columns is None else [name.strip() for name in columns.split(",")],
            where=where,
            images=None if images is None else _images(images),
            sample=sample,
            seed=seed,
            mask=mask,
        )
        write_rows(reader, form, out, title=f"{labels.name}: crops")


def _images(text: str) -> list[str] | list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        from labelstore.errors import UsageError

        raise UsageError(f"--images {text}: give keys or row numbers with one comma between them")
    if all(part.isascii() and part.isdigit() for part in parts):
        return [int(part) for part in parts]
    return parts
