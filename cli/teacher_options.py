"""Options of the commands that run a teacher on a store that exists, and what they say at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import say
from cli.progress import duration

if TYPE_CHECKING:
    from labelstore.generation import GenerationReport

TEACHER = "Teacher"
LABELS = "Labels"
WORK = "How it works"

Images = Annotated[
    Path,
    typer.Option(
        metavar="DIR", help="Image folder that the store was made from.", show_default=False
    ),
]
TeacherSource = Annotated[
    str,
    typer.Option(
        metavar="SOURCE",
        help="timm:NAME, torchvision:NAME, a run folder of `trainer run`, or a checkpoint.",
        rich_help_panel=TEACHER,
    ),
]
TeacherModel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Network of a checkpoint: timm:NAME or torchvision:NAME.",
        rich_help_panel=TEACHER,
    ),
]
ClassMap = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="CSV lines `class name,teacher output`, or wnid for ImageNet folders.",
        rich_help_panel=TEACHER,
    ),
]
PlanName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Crop plan; not needed if there is only one."),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Crops per forward pass.", rich_help_panel=WORK)
]
Device = Annotated[
    str | None,
    typer.Option(
        help="torch device.", show_default="cuda where there is one", rich_help_panel=WORK
    ),
]
Amp = Annotated[
    str,
    typer.Option(metavar="none|bf16|fp16", help="Autocast of the teacher.", rich_help_panel=WORK),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Decoding threads.", show_default="one per core", rich_help_panel=WORK
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Leave out images that cannot be decoded, and record them.",
        rich_help_panel=WORK,
    ),
]
MaxTime = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Stop cleanly after 90s, 30m, 1h30m; exit code 8 if labels are missing.",
        rich_help_panel=WORK,
    ),
]


def print_report(report: GenerationReport, store: Path) -> None:
    """Say what was labelled, and what was left out."""
    for key, reason in report.bad.items():
        say(f"left out {key}: {reason}")
    if report.num_crops:
        rate = f"{report.crops_per_second:,.0f} crops/s"
        print(f"{report.num_crops:,} crops labelled in {duration(report.seconds)} ({rate})")
    print(f"label set {report.label_set} in {store} is complete: {report.num_images:,} images")


def device_of_this_process() -> str | None:
    """Under torchrun each process of a node takes a GPU of its own."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return None
    import torch

    return f"cuda:{rank}" if int(rank) < torch.cuda.device_count() else None
