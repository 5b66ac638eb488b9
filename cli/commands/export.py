"""`labelstore export`: a label set as files that other code reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import IMAGES, DryRun, Json, LabelSet, Store
from cli.output import print_json, say
from cli.progress import Progress


def export(
    format_: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="fkd, relabel, tokenlabeling, ml-dr, npz, parquet, hdf5 or webdataset.",
        ),
    ],
    store: Store,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET", help="Folder (hdf5: file) to make; nothing may have that name."
        ),
    ],
    label_set: LabelSet = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Only images of these classes.", show_default="all"),
    ] = None,
    image_list: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Only these images: a text file with a key per line."),
    ] = None,
    crops: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST-LAST", help="Only these crops of each image.", show_default="all"
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            "--temp",
            help="T of the teacher's logits at which labels go out.",
            show_default="as they were made",
        ),
    ] = None,
    axis_order: Annotated[
        str | None,
        typer.Option(
            metavar="ORDER",
            help="Of label maps: rows-first or columns-first.",
            show_default="rows-first",
        ),
    ] = None,
    images_: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar=IMAGES,
            help="Put the images themselves beside their labels (webdataset).",
        ),
    ] = None,
    shard_mb: Annotated[
        int | None,
        typer.Option(
            metavar="MB", help="Largest file of webdataset, 10^6 bytes.", show_default="256"
        ),
    ] = None,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Export what an unfinished store has.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write labels for other code: FKD, ReLabel, ml-dr, plain tables, HDF5, WebDataset.

    TARGET appears when all of it is written; until then it has a hidden name.
    """
    import labelstore
    from labelstore.errors import UsageError
    from labelstore.exchange import EXPORTS, Form, Selection, export_labels

    if format_ not in EXPORTS:
        raise UsageError(f"no format {format_!r} to export: choose one of {', '.join(EXPORTS)}")
    images: list[str] = []
    if target == Path():
        raise UsageError(
            "TARGET is empty, or the folder that this runs in: name what is to be made"
        )
    if image_list is not None:
        images = _keys(image_list)
    selection = Selection(
        classes=[] if classes is None else classes.split(","),
        images=images,
        crops=None if crops is None else _crop_range(crops),
    )
    with labelstore.open(store, readonly=True) as opened, Progress("export", "images") as progress:
        labels = opened.label_set(label_set)
        if allow_incomplete and 0 < labels.covered_crops < labels.num_crops:
            say(
                f"label set {labels.name} covers {labels.covered_crops} of {labels.num_crops} crops of each image: "
                "these are exported"
            )
        found = export_labels(
            labels,
            format=format_,
            target=target,
            selection=selection,
            form=Form(axis_order=axis_order, images=images_, shard_mb=shard_mb),
            temperature=temperature,
            allow_incomplete=allow_incomplete,
            dry_run=dry_run,
            progress=progress,
        )
    if json:
        print_json({"store": store, "dry_run": dry_run} | found.to_record())
        return
    would = "would write" if dry_run else "wrote"
    at = "" if found.temperature == 1 else f", labels at temperature {found.temperature:g}"
    print(f"{would} {found.crops:,} crops of {found.images:,} images as {format_} to {target}{at}")
    if found.left_out:
        say(f"{found.left_out:,} images have no labels and are left out")


def _keys(path: Path) -> list[str]:
    """The lines of a text file; RejectedInput for what is none, or holds none."""
    from labelstore.errors import RejectedInput

    wanted = (
        "give a text file (UTF-8) with the key of an image per line, "
        "as `labelstore crops --columns key` shows them"
    )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RejectedInput(f"--image-list {path} is no text: {wanted}") from None
    except OSError as error:
        what = (
            "is a folder"
            if path.is_dir()
            else f"cannot be read ({error.strerror})"
            if path.exists()
            else "is not there"
        )
        raise RejectedInput(f"--image-list {path} {what}: {wanted}") from None
    if "\0" in text:
        raise RejectedInput(f"--image-list {path} is no text: {wanted}")
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys:
        raise RejectedInput(f"--image-list {path} holds no key: {wanted}")
    return keys


def _crop_range(text: str) -> range:
    from labelstore.errors import UsageError

    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise UsageError(f"--crops {text}: give FIRST-LAST, for example 0-99")
    return range(int(first), int(last) + 1)
