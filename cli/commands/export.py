"""`labelstore export`: a label set as files that other code reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.field_options import option, with_options
from cli.output import print_json, say
from cli.progress import Progress
from cli.shared_options import IMAGES, DryRun, Json, LabelSet, Store

if TYPE_CHECKING:
    from labelstore.exchange import Selection


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """What of a label set is written."""

    classes: Annotated[str | None, option(metavar="NAME,...", unset="all")] = None
    """Only images of these classes."""
    image_list: Annotated[Path | None, option(metavar="FILE")] = None
    """Only these images: a text file with a key per line."""
    crops: Annotated[str | None, option(metavar="FIRST-LAST", unset="all")] = None
    """Only these crops of each image."""

    def selection(self) -> Selection:
        """As the library takes it; RejectedInput or UsageError for what is none."""
        from labelstore.exchange import Selection

        return Selection(
            classes=[] if self.classes is None else self.classes.split(","),
            images=[] if self.image_list is None else _keys(self.image_list),
            crops=None if self.crops is None else _crop_range(self.crops),
        )


@dataclass(frozen=True, kw_only=True)
class FormOptions:
    """Where a format leaves a choice."""

    axis_order: Annotated[str | None, option(metavar="ORDER", unset="rows-first")] = None
    """Axis order of label maps: rows-first or columns-first."""
    images: Annotated[Path | None, option(metavar=IMAGES)] = None
    """Put the images themselves beside their labels (webdataset)."""
    shard_mb: Annotated[int | None, option(metavar="MB", unset="256")] = None
    """Largest file of webdataset, 10^6 bytes."""


@with_options
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
    chosen: SelectionOptions,
    form: FormOptions,
    label_set: LabelSet = None,
    temperature: Annotated[
        float | None,
        option(
            "--temperature",
            "--temp",
            help="T of the teacher's logits at which labels go out.",
            unset="as they were made",
        ),
    ] = None,
    allow_incomplete: Annotated[
        bool, option("--allow-incomplete", help="Export what an unfinished store has.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write labels for other code: FKD, ReLabel, ml-dr, plain tables, HDF5, WebDataset.

    TARGET appears when all of it is written; until then it has a hidden name.
    """
    import labelstore
    from labelstore.errors import UsageError
    from labelstore.exchange import EXPORTS, Form, export_labels

    if format_ not in EXPORTS:
        raise UsageError(f"no format {format_!r} to export: choose one of {', '.join(EXPORTS)}")
    if target == Path():
        raise UsageError(
            "TARGET is empty, or the folder that this runs in: name what is to be made"
        )
    selection = chosen.selection()
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
            form=Form(**vars(form)),
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
