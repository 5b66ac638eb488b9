"""`labelstore merge`: stores of parts of one data set become one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DryRun, Json
from cli.output import print_fields, print_json, say
from cli.progress import Progress

if TYPE_CHECKING:
    from labelstore.sharing.merge_report import MergedLabels


def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The merged store; made here.")],
    stores: Annotated[
        list[Path],
        typer.Argument(
            metavar="STORE",
            help="Two or more stores, working or frozen, also s3://BUCKET/PATH; they stay as they are.",
        ),
    ],
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Array format of OUT: zarr or hdf5.",
            show_default="the first store's",
        ),
    ] = None,
    images_per_shard: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Images of OUT that lie in one file.",
            show_default="the largest of the stores'",
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make one store of stores that were made on different machines for parts of the same data set.

    Crop plans, classes, teachers' weights and codecs must be equal, and an image in several stores the same file with
    the same labels. Run again, it goes on where it was stopped and takes what the stores have got since.
    """
    import labelstore

    with Progress("merge", "shards") as progress:
        found = labelstore.merge(
            out,
            [str(path) for path in stores],
            backend=backend,
            images_per_shard=images_per_shard,
            dry_run=dry_run,
            progress=progress,
        )
    if json:
        print_json({**asdict(found), "complete": found.is_complete})
        return
    counts = f"{found.num_images:,} images"
    if found.overlapping:
        counts += f", {found.overlapping:,} of them in more than one store"
    if found.num_bad:
        counts += f", {found.num_bad:,} left out"
    fields = {"would make" if dry_run else "merged": f"{found.path}: {counts}"}
    if not dry_run:
        fields["shards"] = f"{found.shards:,} now, {found.already:,} before"
    for labels in found.label_sets:
        fields[f"label set {labels.name}"] = _described(labels)
    for name in found.masks:
        fields[f"mask {name}"] = "as in all of them"
    print_fields(fields)
    for note in found.notes:
        say(note)


def _described(labels: MergedLabels) -> str:
    said = " + ".join(f"{count:,}" for count in labels.from_stores) + " images"
    if labels.compared:
        said += f"; {labels.compared:,} crops compared, largest difference {labels.largest_difference:.2g}"
    return f"{said}; {labels.lacking:,} images lack labels" if labels.lacking else said
