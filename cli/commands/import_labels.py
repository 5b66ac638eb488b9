"""`labelstore import`: labels that another project wrote become a label set."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import one_line
from cli.frame_output import no_formula
from cli.new_store_options import Backend, CropsPerShard, ImagesPerShard
from cli.options import IMAGES, Dask, DryRun, Json, Processes, numbers
from cli.output import print_json, say
from cli.progress import Progress, duration
from cli.teacher_options import LABELS, WORK, Dtype

if TYPE_CHECKING:
    from labelstore.exchange import ImportPlan, ImportReport

STATED = "What the files cannot tell"
CROPS = "Crops"
LISTED = 20
"""Unusable files that are listed on stderr; `--report` lists them all."""


def import_labels(
    format_: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="fkd, relabel, tokenlabeling, sre2l, lpld, lpqld, ml-dr, tinyvit, torchdistill, npz or parquet.",
        ),
    ],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder or file of the labels.")],
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="Folder of the store, new or not.")
    ],
    images: Annotated[
        Path,
        typer.Option(
            metavar=IMAGES,
            help="Images that the labels were made from: a folder with one folder per class, or as `create` has it.",
            show_default=False,
        ),
    ],
    compression: Annotated[
        str | None,
        typer.Option(
            metavar="CODEC",
            help="Form in which labels are kept; of FKD's files also what they are.",
            show_default="by format",
            rich_help_panel=LABELS,
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Classes to keep.", show_default="the files'", rich_help_panel=LABELS
        ),
    ] = None,
    dtype: Dtype = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the label set.",
            show_default="the teacher's, or the format",
            rich_help_panel=LABELS,
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(metavar="C", help="Classes of the teacher.", rich_help_panel=STATED),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            "--temp",
            help="Of the softmax that made the probabilities, needed where files do not say it; or is to make them.",
            show_default="1 for outputs",
            rich_help_panel=STATED,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Such as timm:resnet50; recorded only.", rich_help_panel=STATED
        ),
    ] = None,
    input_size: Annotated[
        int | None,
        typer.Option(metavar="PX", help="Side of the teacher's input.", rich_help_panel=STATED),
    ] = None,
    interpolation: Annotated[
        str | None,
        typer.Option(help="How the teacher's crops were resized.", rich_help_panel=STATED),
    ] = None,
    axis_order: Annotated[
        str | None,
        typer.Option(
            metavar="ORDER",
            help="Of boxes: sides or swapped; of label maps: rows-first or columns-first.",
            show_default="sides; measured",
            rich_help_panel=STATED,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="B", help="Of the run that wrote sre2l files.", rich_help_panel=STATED
        ),
    ] = None,
    sampler_seed: Annotated[
        int, typer.Option(help="Of the run that wrote sre2l files.", rich_help_panel=STATED)
    ] = 42,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Area of tinyvit crops, or of those drawn from label maps.",
            show_default="0.08,1",
            rich_help_panel=STATED,
        ),
    ] = None,
    flip_prob: Annotated[
        float | None,
        typer.Option(help="Likewise.", show_default="0.5", rich_help_panel=STATED),
    ] = None,
    num_crops: Annotated[
        int | None,
        typer.Option(
            metavar="M",
            help="Take the first M crops of each image.",
            show_default="all",
            rich_help_panel=CROPS,
        ),
    ] = None,
    plan_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Crop plan: a new one, or one with the very same crops.",
            show_default="plan",
            rich_help_panel=CROPS,
        ),
    ] = None,
    round_boxes: Annotated[
        bool,
        typer.Option(
            "--round-boxes",
            help="Take the nearest pixels where boxes are of an image of another size.",
            rich_help_panel=CROPS,
        ),
    ] = False,
    whole_images: Annotated[
        bool,
        typer.Option(
            "--whole-images",
            help="Crops are whole images, where the format keeps no boxes.",
            rich_help_panel=CROPS,
        ),
    ] = False,
    drop_augmentations: Annotated[
        bool,
        typer.Option(
            "--drop-augmentations",
            help="Import labels of crops that were augmented further, without that.",
            rich_help_panel=CROPS,
        ),
    ] = False,
    images_per_shard: ImagesPerShard = None,
    crops_per_shard: CropsPerShard = None,
    backend: Backend = "zarr",
    workers: Processes = None,
    dask: Dask = None,
    scratch: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where batch files are sorted by image.",
            show_default="the temporary folder",
            rich_help_panel=WORK,
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave out images whose labels cannot be used, and record them.",
            rich_help_panel=WORK,
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write every unusable file with its reason here, as CSV.",
            rich_help_panel=WORK,
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Import labels that another project wrote; nothing that their files name is ever run.

    Run again, it goes on where it was. Files that cannot be used end it with exit code 7 and a list of them.
    """
    from labelstore.blocks.block_map import block_map
    from labelstore.exchange import RejectedFiles, Stated, plan_import
    from labelstore.exchange import import_labels as run_import

    stated = Stated(
        compression=compression,
        k=k,
        num_classes=num_classes,
        temperature=temperature,
        teacher=teacher,
        input_size=input_size,
        interpolation=interpolation,
        num_crops=num_crops,
        axis_order=axis_order,
        round_boxes=round_boxes,
        whole_images=whole_images,
        drop_augmentations=drop_augmentations,
        batch_size=batch_size,
        sampler_seed=sampler_seed,
        scale=None if scale is None else _pair(scale),
        flip_prob=flip_prob,
        skip_bad=skip_bad,
    )
    wanted: dict[str, Any] = {
        "format": format_,
        "source": source,
        "images": images,
        "stated": stated,
        "dtype": dtype,
        "name": name,
        "plan_name": plan_name,
    }
    if dry_run:
        _print_plan(plan_import(store, **wanted), store, json=json)
        return
    try:
        with (
            Progress("import", "images") as progress,
            block_map(workers=workers, dask=dask) as map_blocks,
        ):
            found = run_import(
                store,
                **wanted,
                images_per_shard=images_per_shard,
                crops_per_shard=crops_per_shard,
                backend=backend,
                scratch=scratch,
                map_blocks=map_blocks,
                progress=progress,
                note=say,
            )
    except RejectedFiles as error:
        _tell_bad(error.report, report)
        if not json:
            raise
        # here and not in cli.errors: what was and was not imported is in the same object as the error
        message, code = one_line(str(error)), error.exit_code
        say(f"labelstore: {message}")
        print_json({"store": store, **asdict(error.report), "error": message, "exit": code})
        raise typer.Exit(code) from None
    _tell_bad(found, report)
    if json:
        print_json({"store": store, **asdict(found)})
    else:
        _print_report(found, store)


def _pair(text: str) -> tuple[float, float]:
    low, high = numbers(text, "--scale", "LOW", "HIGH")
    return low, high


def _tell_bad(found: ImportReport, report: Path | None) -> None:
    """List what cannot be used: on stderr where there is more than the error itself says, and in a file."""
    if report is not None:
        with report.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            rows = csv.writer(file)
            rows.writerow(("file", "image", "reason"))
            rows.writerows(
                map(no_formula, (bad.file, bad.image or "", bad.reason)) for bad in found.bad
            )
    if found.num_bad > 1 or (found.num_bad and not found.rejected_blocks):
        for bad in found.bad[:LISTED]:
            say(f"cannot be used: {bad.file}: {bad.reason}")
        if found.num_bad > LISTED:
            more = "" if report is not None else "; --report FILE lists them"
            say(f"... and {found.num_bad - LISTED:,} more{more}")
    if found.unmatched:
        say(
            f"{len(found.unmatched):,} label files belong to no image, the first is {found.unmatched[0]}"
        )


def _print_plan(plan: ImportPlan, store: Path, *, json: bool) -> None:
    record = {"store": store, "exists": store.exists(), **plan.to_record()}
    if json:
        print_json(record)
        return
    kept = f", K={record['k']}" if record["k"] else ""
    print(
        f"would import {record['images']:,} images x {record['num_crops']} crops of {record['num_classes']:,} classes "
        f"({record['kind']}{kept}, {record['dtype']}) as label set {record['label_set']} of {store}"
    )
    for lost in record["lost"]:
        say(f"not kept: {lost}")
    if record["unmatched"]:
        say(f"{record['unmatched']:,} label files belong to no image")


def _print_report(found: ImportReport, store: Path) -> None:
    for lost in found.lost:
        say(f"not kept: {lost}")
    if found.num_images:
        rate = f"{found.num_images / found.seconds:,.0f} images/s"
        print(f"{found.num_images:,} images imported in {duration(found.seconds)} ({rate})")
    if found.ground_truth_probability is not None:
        print(
            f"the labels give the images' classes {found.ground_truth_probability:.3f} on average"
        )
    left_out = f", {found.num_bad:,} left out" if found.num_bad else ""
    print(
        f"label set {found.label_set} in {store} is complete: {found.num_crops} crops per image{left_out}"
    )
