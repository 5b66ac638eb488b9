"""Options of the commands that run a teacher."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from cli.field_options import option
from cli.progress import progress_to_the_end, say_once
from cli.shared_options import IMAGES, WORK, importable_here, seconds, started
from labelstore.errors import RejectedInput, UsageError

if TYPE_CHECKING:
    from labelstore.catalogue.records import TeacherRow
    from labelstore.codecs import LabelCodec
    from labelstore.labelling.generation_options import GenerationOptions
    from labelstore.teachers.teacher import Teacher
    from labelstore.teachers.teacher_check import TeacherCheck

TEACHER = "Teacher"
LABELS = "Labels"
SOURCE_HELP = "timm:NAME, torchvision:NAME, a run folder of `trainer run`, or a checkpoint."

Images = Annotated[
    Path | None,
    option(
        metavar=IMAGES,
        help="What the store was made from: a folder, list or shards.",
        unset="as recorded",
    ),
]
TeacherSource = Annotated[
    str,
    option(metavar="SOURCE", help=SOURCE_HELP, rich_help_panel=TEACHER, callback=importable_here),
]
OptionalTeacher = Annotated[
    str | None,
    option(
        "--teacher",
        metavar="SOURCE",
        help=SOURCE_HELP,
        unset="none: new images are taken in and wait for their labels",
        rich_help_panel=TEACHER,
        callback=importable_here,
    ),
]
SameTeacher = Annotated[
    str | None,
    option(
        metavar="SOURCE",
        help="The same weights from another place.",
        unset="as recorded",
        callback=importable_here,
    ),
]
TeacherModel = Annotated[
    str | None,
    option(
        metavar="NAME",
        help="Network of a checkpoint: timm:NAME or torchvision:NAME.",
        rich_help_panel=TEACHER,
        callback=importable_here,
    ),
]
PlanName = Annotated[
    str | None, option(metavar="NAME", help="Crop plan; not needed if there is only one.")
]


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How a teacher is loaded."""

    PANEL: ClassVar = TEACHER

    teacher_model: Annotated[str | None, option(metavar="NAME", callback=importable_here)] = None
    """Network of a checkpoint: timm:NAME or torchvision:NAME."""
    weights: Annotated[Literal["ema", "raw"] | None, option(unset="raw")] = None
    """Which weights of a checkpoint or run folder with a moving average: the average, or the plain ones."""
    class_map: Annotated[str | None, option(metavar="FILE")] = None
    """CSV lines `class name,teacher output`, or wnid for ImageNet folders."""

    def load(self, source: str, recorded: Iterable[TeacherRow] = ()) -> Teacher:
        """The teacher, on the CPU; of a checkpoint that a store has `recorded`, the network is known."""
        from labelstore.teachers.teacher import load_teacher, recorded_architecture

        return load_teacher(
            source,
            architecture=self.teacher_model or recorded_architecture(source, recorded),
            weights=self.weights,
            note=say_once,
        )

    def generation(self, work: WorkOptions, name: str | None = None) -> GenerationOptions:
        """As the library takes them: what is said about the outputs, and how the labels of a set are made."""
        from labelstore.labelling.generation_options import GenerationOptions

        return GenerationOptions(name=name, class_map=self.class_map, **work.arguments())


@dataclass(frozen=True, kw_only=True)
class NewTeacherOptions(TeacherOptions):
    """How a teacher is loaded, checked and asked for a new label set."""

    classes: Annotated[
        Literal["data", "teacher", "none", "embedding"] | None,
        option(unset="as recorded, or data"),
    ] = None
    """Classes of the labels: those of the images, all outputs of the teacher, all outputs for images without a
    ground truth (none), or all outputs as an embedding, as of CLIP."""
    class_names: Annotated[
        str | None, option(metavar="FILE", unset="as timm, torchvision or the run says")
    ] = None
    """Names of the teacher's outputs to show: one per line, or imagenet-1k, -12k, -21k, -22k."""
    allow_lost_mass: bool = False
    """Accept a class map that leaves out more than a quarter of the teacher's probability on average."""
    temperature: Annotated[float, option("--temperature", "--temp")] = 1.0
    """Temperature of the softmax."""
    val: Annotated[Path | None, option(metavar=IMAGES)] = None
    """Validation images of the same classes: the teacher is measured on them first."""
    expect_top1: Annotated[float | None, option(metavar="SHARE")] = None
    """Refuse a teacher whose top-1 on --val is further than three standard errors from it."""
    val_images: Annotated[int, option(metavar="N")] = 2000
    """Images of --val that are looked at."""

    def __post_init__(self) -> None:
        """UsageError or RejectedInput for a check of the teacher that cannot be."""
        expected = self.expect_top1
        if self.val is None:
            if expected is not None:
                raise UsageError(
                    f"--expect-top1 {expected} needs --val DIR: images to measure the teacher on"
                )
            return
        if expected is not None and not 0 < expected < 1:
            raise UsageError(
                f"--expect-top1 {expected}: give a share between 0 and 1, such as 0.88"
            )
        if self.val_images < 1:
            raise UsageError(f"--val-images {self.val_images}: at least 1")
        from labelstore.images import are_there

        if not are_there(self.val):
            raise RejectedInput(
                f"--val {self.val} is not there: give a folder with one subfolder per class"
            )

    def generation(self, work: WorkOptions, name: str | None = None) -> GenerationOptions:
        """As the library takes them."""
        return replace(
            super().generation(work, name),
            classes=self.classes,
            class_names=self.class_names,
            allow_lost_mass=self.allow_lost_mass,
            temperature=self.temperature,
        )

    def check(self) -> TeacherCheck | None:
        """The check of the teacher that was asked for."""
        if self.val is None:
            return None
        from labelstore.teachers.teacher_check import TeacherCheck

        return TeacherCheck(
            val=self.val,
            expect_top1=self.expect_top1,
            num_images=self.val_images,
            progress=progress_to_the_end("teacher", "images"),
        )


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """The form in which labels are kept, and the name of the label set."""

    PANEL: ClassVar = LABELS

    compression: Annotated[str, option(metavar="CODEC")] = "ms"
    """Form of a label: full, hard, smoothing, ms, mr (FKD 3.5), logits, pq or labelmap."""
    k: Annotated[int | None, option(metavar="K", unset="5")] = None
    """Classes that ms and mr keep, and labelmap in each cell."""
    tail_classes: Annotated[int | None, option(metavar="L", unset="0, evenly")] = None
    """With ms: store once per image how its crops' tails spread over L classes (100 is a good number)."""
    dtype: Annotated[str | None, option(metavar="DTYPE", unset="float16")] = None
    """dtype of the probabilities, or of logits: float32, float16 or uint8."""
    values_per_code: Annotated[int | None, option(metavar="V", unset="20")] = None
    """With pq: outputs that one byte stands for; 20 is 1/40 of float16."""
    name: Annotated[str | None, option(metavar="NAME", unset="the teacher's")] = None
    """Name of the label set."""

    def codec(self) -> LabelCodec:
        """The codec; UsageError for what is none."""
        from labelstore.codecs import codec_from_options

        return codec_from_options(
            self.compression, self.k, self.dtype, self.tail_classes, self.values_per_code
        )


@dataclass(frozen=True, kw_only=True)
class ForwardOptions:
    """How crops go through a teacher."""

    PANEL: ClassVar = WORK

    batch_size: Annotated[int, option(min=1, max=65_536)] = 64
    """Crops per forward pass."""
    device: Annotated[str | None, option(unset="auto: a GPU where there is one")] = None
    """torch device."""
    amp: Annotated[Literal["none", "bf16", "fp16"] | None, option(unset="as recorded, or none")] = (
        None
    )
    """Autocast of the teacher."""
    workers: Annotated[int | None, option(min=1, unset="one per core")] = None
    """Decoding threads."""

    def arguments(self) -> dict[str, Any]:
        """As the library's functions take them."""
        return {
            "batch_size": self.batch_size,
            "device": self.device,
            "autocast": self.amp,
            "workers": self.workers,
        }


@dataclass(frozen=True, kw_only=True)
class WorkOptions(ForwardOptions):
    """How labels are made."""

    crop_device: Annotated[
        Literal["cpu", "device", "cuda"] | None, option(unset="as recorded, or cpu")
    ] = None
    """Where crops are cut and resized; 1 % of the values differ by 1 of 255."""
    decode_device: Annotated[
        Literal["cpu", "device"] | None, option(unset="as recorded, or cpu")
    ] = None
    """Where JPEGs are decoded, and crops with them; measured on the images first."""
    compile_teacher: Annotated[bool, option("--compile")] = False
    """torch.compile the teacher."""
    skip_bad: bool = False
    """Leave out images that cannot be decoded, and record them."""
    max_time: Annotated[str | None, option(metavar="TIME")] = None
    """Stop cleanly 90s, 30m, 1h30m after the command began, loading the teacher included; exit code 8 if labels are
    missing."""

    def __post_init__(self) -> None:
        """UsageError for a time that is none, before torch is imported."""
        self.max_seconds()

    def max_seconds(self) -> float | None:
        """Time after which the work stops."""
        return None if self.max_time is None else seconds(self.max_time, "--max-time")

    def arguments(self) -> dict[str, Any]:
        """As the library's functions take them, each process of a node with a GPU of its own."""
        return super().arguments() | {
            "device": self.device or device_of_this_process(),
            "crop_device": self.crop_device,
            "decode_device": self.decode_device,
            "compile_teacher": self.compile_teacher,
            "skip_bad": self.skip_bad,
            "max_seconds": self.max_seconds(),
            "started": started(),
        }


def check_teacher_model(teacher: str | None, teacher_model: str | None) -> None:
    """UsageError for a `--teacher-model` without the checkpoint that it is the network of."""
    if teacher is None and teacher_model is not None:
        raise UsageError(
            f"--teacher-model {teacher_model} names the network of a checkpoint: give that with --teacher, or leave "
            "it out"
        )


def device_of_this_process() -> str | None:
    """Under torchrun each process of a node takes a GPU of its own, in turn where there are more processes."""
    rank = os.environ.get("LOCAL_RANK", "")
    if not rank.isdecimal():
        return None
    from labelstore.devices import device_of_rank

    return device_of_rank(int(rank))
