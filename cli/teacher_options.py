"""Options of the commands that run a teacher, and what they say at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self, TypedDict

import typer

from cli.named_functions import importable_here
from cli.options import IMAGES
from cli.output import say
from cli.progress import Progress, duration
from labelstore.errors import RejectedInput, UsageError

if TYPE_CHECKING:
    from labelstore.labelling.worker import GenerationReport

TEACHER = "Teacher"
LABELS = "Labels"
WORK = "How it works"

Images = Annotated[
    Path | None,
    typer.Option(
        metavar=IMAGES,
        help="What the store was made from: a folder, list or shards.",
        show_default="as recorded",
    ),
]
TeacherSource = Annotated[
    str,
    typer.Option(
        metavar="SOURCE",
        help="timm:NAME, torchvision:NAME, a run folder of `trainer run`, or a checkpoint.",
        rich_help_panel=TEACHER,
        callback=importable_here,
    ),
]
OptionalTeacher = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        metavar="SOURCE",
        help="timm:NAME, torchvision:NAME, a run folder of `trainer run`, or a checkpoint.",
        show_default="none: new images are taken in and wait for their labels",
        rich_help_panel=TEACHER,
        callback=importable_here,
    ),
]
TeacherModel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Network of a checkpoint: timm:NAME or torchvision:NAME.",
        rich_help_panel=TEACHER,
        callback=importable_here,
    ),
]
TeacherWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="ema|raw",
        help="Of a checkpoint or run folder with a moving average: it, or the plain weights.",
        show_default="raw",
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
LabelClasses = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="data|teacher",
        help="Classes of the labels: those of the images, or all outputs of the teacher.",
        show_default="as recorded, or data",
        rich_help_panel=TEACHER,
    ),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Names of the teacher's outputs to show: one per line, or imagenet-1k, -12k, -21k, -22k.",
        show_default="as timm, torchvision or the run says",
        rich_help_panel=TEACHER,
    ),
]
AllowLostMass = Annotated[
    bool,
    typer.Option(
        "--allow-lost-mass",
        help="Accept a class map that leaves out more than a quarter of the teacher's probability on average.",
        rich_help_panel=TEACHER,
    ),
]
Temperature = Annotated[
    float,
    typer.Option("--temperature", "--temp", help="Of the softmax.", rich_help_panel=TEACHER),
]
Compression = Annotated[
    str,
    typer.Option(
        metavar="CODEC",
        help="Form of a label: full, hard, smoothing, ms, mr (FKD 3.5), logits or labelmap.",
        rich_help_panel=LABELS,
    ),
]
KeptClasses = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="Classes that ms and mr keep, and labelmap in each cell.",
        show_default="5",
        rich_help_panel=LABELS,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="Of the probabilities: float32, float16 or uint8.",
        show_default="float16",
        rich_help_panel=LABELS,
    ),
]
LabelSetName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Name of the label set.",
        show_default="the teacher's",
        rich_help_panel=LABELS,
    ),
]
SameTeacher = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="The same weights from another place.",
        show_default="as recorded",
        callback=importable_here,
    ),
]
PlanName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Crop plan; not needed if there is only one."),
]
BatchSize = Annotated[
    int, typer.Option(min=1, max=65_536, help="Crops per forward pass.", rich_help_panel=WORK)
]
Device = Annotated[
    str | None,
    typer.Option(
        help="torch device.", show_default="auto: a GPU where there is one", rich_help_panel=WORK
    ),
]
Amp = Annotated[
    str | None,
    typer.Option(
        metavar="none|bf16|fp16",
        help="Autocast of the teacher.",
        show_default="as recorded, or none",
        rich_help_panel=WORK,
    ),
]
CropDevice = Annotated[
    str | None,
    typer.Option(
        metavar="cpu|device",
        help="Where crops are cut and resized; 1 % of the values differ by 1 of 255.",
        show_default="as recorded, or cpu",
        rich_help_panel=WORK,
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="torch.compile the teacher.", rich_help_panel=WORK)
]
Val = Annotated[
    Path | None,
    typer.Option(
        metavar=IMAGES,
        help="Validation images of the same classes: the teacher is measured on them first.",
        rich_help_panel=TEACHER,
    ),
]
ExpectTop1 = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Refuse a teacher whose top-1 on --val is further than three standard errors from it.",
        rich_help_panel=TEACHER,
    ),
]
ValImages = Annotated[
    int,
    typer.Option(metavar="N", help="Images of --val that are looked at.", rich_help_panel=TEACHER),
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
    """Say what was labelled, and what was left out; the first rank only."""
    if not is_first_rank():
        return
    for key, reason in report.bad.items():
        say(f"left out {key}: {reason}")
    if report.num_crops:
        rate = f"{report.crops_per_second:,.0f} crops/s"
        share = " by this process" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        print(f"{report.num_crops:,} crops labelled{share} in {duration(report.seconds)} ({rate})")
    print(f"label set {report.label_set} in {store} is complete: {report.num_images:,} images")


def teacher_check(val: Path | None, expect_top1: float | None, images: int) -> CheckOptions | None:
    """What `--val`, `--expect-top1` and `--val-images` ask for; UsageError where that cannot be."""
    if val is None:
        if expect_top1 is not None:
            raise UsageError(
                f"--expect-top1 {expect_top1} needs --val DIR: images to measure the teacher on"
            )
        return None
    if expect_top1 is not None and not 0 < expect_top1 < 1:
        raise UsageError(f"--expect-top1 {expect_top1}: give a share between 0 and 1, such as 0.88")
    if images < 1:
        raise UsageError(f"--val-images {images}: at least 1")
    from labelstore.images import are_there

    if not are_there(val):
        raise RejectedInput(f"--val {val} is not there: give a folder with one subfolder per class")
    return {"val": val, "expect_top1": expect_top1, "num_images": images}


class CheckOptions(TypedDict):
    """Arguments of `TeacherCheck`, which lives beside torch."""

    val: Path
    expect_top1: float | None
    num_images: int


def one_of(value: str | None, flag: str, allowed: Sequence[str]) -> None:
    """UsageError for a value that is given and not allowed."""
    if value is not None and value not in allowed:
        raise UsageError(f"{flag} {value}: choose one of {', '.join(allowed)}")


def check_work(amp: str | None, crop_device: str | None = None, weights: str | None = None) -> None:
    """UsageError for `--amp`, `--crop-device` and `--weights` that do not exist, before torch is imported."""
    one_of(weights, "--weights", ("ema", "raw"))
    one_of(amp, "--amp", ("none", "bf16", "fp16"))
    one_of(crop_device, "--crop-device", ("cpu", "device", "cuda"))


def check_teacher_model(teacher: str | None, teacher_model: str | None) -> None:
    """UsageError for a `--teacher-model` without the checkpoint that it is the network of."""
    if teacher is None and teacher_model is not None:
        from labelstore.errors import UsageError

        raise UsageError(
            f"--teacher-model {teacher_model} names the network of a checkpoint: give that with --teacher, or leave "
            "it out"
        )


def is_first_rank() -> bool:
    """True for the one process that speaks where torchrun started several."""
    return os.environ.get("RANK", "0") in ("", "0")


class Quiet:
    """Stands for a `Progress` in the processes that do not speak."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, done: int, total: int) -> None:
        """Nothing."""


def progress_of(title: str, unit: str) -> Progress | Quiet:
    """Progress on stderr, of the first rank only."""
    return Progress(title, unit) if is_first_rank() else Quiet()


def say_once(message: str) -> None:
    """A message for people, of the first rank only."""
    if is_first_rank():
        say(message)


def device_of_this_process() -> str | None:
    """Under torchrun each process of a node takes a GPU of its own, in turn where there are more processes."""
    rank = os.environ.get("LOCAL_RANK", "")
    if not rank.isdecimal():
        return None
    from labelstore.devices import device_of_rank

    return device_of_rank(int(rank))
