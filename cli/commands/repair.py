"""`labelstore repair`: make damaged shards again, and only them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import typer

from cli.options import IMAGES, DryRun, Json, Store
from cli.output import print_json, say
from cli.progress import Progress, duration
from cli.teacher_options import SameTeacher

DAMAGE = 3


def repair(
    store: Store,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar=IMAGES,
            help="Images that the labels were made from.",
            show_default="as recorded",
        ),
    ] = None,
    teacher: SameTeacher = None,
    class_map: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="CSV lines `class name,teacher output`, or wnid.",
            show_default="as recorded",
        ),
    ] = None,
    whole_shards: Annotated[
        bool,
        typer.Option(
            "--whole-shards",
            help="Replace all files of a damaged shard where the teacher does not make the intact ones "
            "again bit for bit.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Crops per forward pass.")] = 64,
    device: Annotated[
        str | None,
        typer.Option(help="torch device.", show_default="auto: a GPU where there is one"),
    ] = None,
    amp: Annotated[
        str | None,
        typer.Option(
            metavar="none|bf16|fp16", help="Autocast of the teacher.", show_default="as recorded"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding threads.", show_default="one per core")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make damaged shards again, and only them: labels from images, boxes from the plan.

    Finds damage as `labelstore verify` does. Files that match their ledger row stay as they are. Masks are
    computed from labels, metadata files from the catalogue. The teacher's weights must be the recorded ones.
    """
    from labelstore.care.repairing import repair as run
    from labelstore.store import open_store
    from labelstore.teachers.labeller import Autocast

    with (
        open_store(store, readonly=dry_run, checked=False) as opened,
        Progress("repair", "shards") as progress,
    ):
        report = run(
            opened,
            images=images,
            teacher=teacher,
            class_map=class_map,
            whole_shards=whole_shards,
            batch_size=batch_size,
            device=device,
            autocast=cast("Autocast | None", amp),
            workers=workers,
            dry_run=dry_run,
            progress=progress,
            note=say,
        )
    if json:
        print_json({"store": store, **asdict(report)})
    else:
        verb = "would repair" if dry_run else "repaired"
        for key in report.metadata:
            print(f"{verb} {key}")
        for shard in report.shards:
            state = "" if dry_run else ", as it was" if shard.same_bytes else ", new bytes"
            print(
                f"{verb} {', '.join(shard.files)}: images {shard.images[0]}-{shard.images[1]} of "
                f"{shard.group}, crop shard {shard.crop_shard}{state}"
            )
        for problem in report.remaining:
            print(problem)
        count = len(report.metadata) + len(report.shards)
        print(
            f"{verb} {count:,} of {count + len(report.remaining):,} in {duration(report.seconds)}"
            if count or report.remaining
            else f"{store}: nothing to repair"
        )
    if report.remaining:
        raise typer.Exit(DAMAGE)
