"""`labelstore import`: labels that another project wrote become a label set."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import one_line
from cli.field_options import Shown, option, with_options
from cli.new_store_options import CROPS
from cli.output import duration, print_json, say
from cli.progress import Progress
from cli.shared_options import IMAGES, WORK, BlockOptions, DryRun, Json
from cli.teacher_options import LABELS
from cli.wording import import_facts, spoken
from labelstore.exchange.stated import ImportOptions, Stated
from labelstore.untrusted.spreadsheet_cells import no_formula

if TYPE_CHECKING:
    from labelstore.exchange import ImportPlan, ImportReport

LISTED = 20
"""Unusable files that are listed on stderr; `--report` lists them all."""

_FILES = "What the files cannot tell"
STATED = Shown(
    panels={
        "compression": LABELS,
        "num_classes": _FILES,
        "num_crops": CROPS,
        "axis_order": _FILES,
        "round_boxes": CROPS,
        "batch_size": _FILES,
        "skip_bad": WORK,
    },
    options={
        "compression": option(metavar="CODEC", unset="by format"),
        "k": option(metavar="K", unset="the files'"),
        "num_classes": option(metavar="C"),
        "temperature": option("--temperature", "--temp", unset="1 for outputs"),
        "teacher": option(metavar="NAME"),
        "input_size": option(metavar="PX"),
        "num_crops": option(metavar="M", unset="all"),
        "axis_order": option(metavar="ORDER", unset="sides; measured"),
        "order": option(metavar="NAME|FILE", unset="where it is proved"),
        "batch_size": option(metavar="B", unset="the files'"),
        "sampler_seed": option(unset="42, where that is proved"),
        "scale": option(metavar="LOW,HIGH", unset="0.08,1"),
        "flip_prob": option(unset="0.5"),
    },
    left_out=("ratio",),
)


TARGET = Shown(
    panels={"dtype": LABELS, "plan_name": CROPS, "images_per_shard": WORK},
    options={
        "dtype": option(metavar="DTYPE", unset="float16"),
        "name": option(metavar="NAME", unset="the teacher's, or the format"),
        "plan_name": option(metavar="NAME", unset="plan"),
        "images_per_shard": option(unset="by size"),
        "crops_per_shard": option(unset="at most 100"),
    },
)


@with_options
def import_labels(
    format_: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="fkd, relabel, tokenlabeling, sre2l, lpld, lpqld, edc, gvbsm, hald, ml-dr, datacompdr, tinyvit, "
            "torchdistill, npz or parquet.",
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
        ),
    ],
    stated: Annotated[Stated, STATED],
    target: Annotated[ImportOptions, TARGET],
    blocks: BlockOptions,
    scratch: Annotated[
        Path | None,
        option(
            metavar="DIR",
            help="Where batch files are sorted by image.",
            unset="the temporary folder",
            rich_help_panel=WORK,
        ),
    ] = None,
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
    from labelstore.exchange import RejectedFiles, plan_import
    from labelstore.exchange import import_labels as run_import

    wanted: dict[str, Any] = {
        "format": format_,
        "source": source,
        "images": images,
        "stated": stated,
        "options": target,
    }
    if dry_run:
        _print_plan(plan_import(store, **wanted), store, json=json)
        return
    try:
        with (
            Progress("import", "images") as progress,
            blocks.mapped() as map_blocks,
        ):
            found = run_import(
                store,
                **wanted,
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
        message, code = one_line(spoken(str(error))), error.exit_code
        say(f"labelstore: {message}")
        print_json({"store": store, **asdict(error.report), "error": message, "exit": code})
        raise typer.Exit(code) from None
    _tell_bad(found, report)
    if json:
        print_json({"store": store, **asdict(found)})
    else:
        _print_report(found, store)


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
    what = "values" if record["kind"] == "embedding" else "classes"
    print(
        f"would import {record['images']:,} images x {record['num_crops']} crops of {record['num_classes']:,} {what} "
        f"({record['kind']}{kept}, {record['dtype']}) as label set {record['label_set']} of {store}"
    )
    for line in (*import_facts(record), *(f"not kept: {lost}" for lost in record["lost"])):
        say(line)
    if record["unmatched"]:
        say(f"{record['unmatched']:,} label files belong to no image")


def _print_report(found: ImportReport, store: Path) -> None:
    for line in (*import_facts(found.facts), *(f"not kept: {lost}" for lost in found.lost)):
        say(line)
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
