"""Which teacher output belongs to which class of the data set, where the two number classes differently."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import LabelCodec
from labelstore.errors import RejectedInput, UsageError
from labelstore.teachers.teacher import Teacher

IMAGENET_VARIANTS = {
    1000: "imagenet-1k",
    11221: "imagenet-21k-miil",
    11821: "imagenet-12k",
    21841: "imagenet-22k",
    21843: "imagenet-21k",
}
"""Outputs -> timm's name of the variant of ImageNet that has as many classes."""


def class_map(
    teacher: Teacher, classes: Sequence[str], source: str | Path | None = None
) -> NDArray[np.int64] | None:
    """(classes of the data set,) teacher outputs to keep, in the data set's order; None keeps all as they are.

    `source` is a CSV file of `class name,teacher output` lines, or "wnid" for folders named by WordNet ids
    and a teacher trained on one of timm's ImageNet variants. Without it a teacher that names its classes is
    matched by name, and any other must have as many outputs as the data set has classes (UsageError).
    """
    outputs = teacher.row.num_classes
    if source is not None and str(source) != "wnid":
        chosen = _from_file(Path(source), classes)
    elif source is not None:
        names = wordnet_ids(outputs)
        if names is None:
            raise UsageError(
                f"--class-map wnid knows ImageNet teachers of {', '.join(map(str, IMAGENET_VARIANTS))} outputs; this "
                f"one has {outputs}: give --class-map FILE"
            )
        chosen = _by_name(names, classes, f"timm's {outputs}-class ImageNet")
    elif teacher.class_names is not None and tuple(teacher.class_names) != tuple(classes):
        if not set(classes) <= set(teacher.class_names):
            strange = next(name for name in classes if name not in teacher.class_names)
            raise UsageError(
                f"the teacher was not trained on class {strange!r} of these images: "
                "give --class-map FILE with lines `class name,teacher output`"
            )
        chosen = _by_name(teacher.class_names, classes, "the teacher")
    elif outputs != len(classes):
        raise UsageError(
            f"the teacher has {outputs} classes and the images {len(classes)}: give --class-map FILE with lines "
            "`class name,teacher output`, or --class-map wnid for ImageNet folders"
        )
    else:
        return None
    if chosen.min() < 0 or chosen.max() >= outputs:
        raise RejectedInput(
            f"the class map names teacher output {chosen.max()}: it has outputs 0-{outputs - 1}"
        )
    if len(np.unique(chosen)) != len(chosen):
        raise RejectedInput(
            "the class map gives one teacher output to two classes: each output once"
        )
    return chosen


def is_projection(
    teacher: Teacher, codec: LabelCodec, classes: Sequence[str], source: str | Path | None
) -> bool:
    """Whether raw outputs are to be kept as they are, being no classes of these images: a projection head's.

    Such has another number of outputs than there are classes, no names for them, and no class map.
    """
    unnamed = source is None and teacher.class_names is None
    return codec.takes == "outputs" and unnamed and teacher.row.num_classes != len(classes)


def columns_for(
    teacher: Teacher, codec: LabelCodec, classes: Sequence[str], source: str | Path | None
) -> NDArray[np.int64] | None:
    """`class_map`; None, which keeps all outputs, also for a projection head."""
    if is_projection(teacher, codec, classes, source):
        return None
    return class_map(teacher, classes, source)


def _from_file(path: Path, classes: Sequence[str]) -> NDArray[np.int64]:
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            reader = csv.reader(lines)
            pairs: dict[str, int] = {}
            for row in filter(None, reader):
                try:
                    pairs[row[0].strip()] = int(row[1])
                except (IndexError, ValueError):
                    raise RejectedInput(
                        f"{path}, line {reader.line_num}: {','.join(row)[:80]!r} is not `class name,teacher output`, "
                        "for example `tench,0`"
                    ) from None
    except RejectedInput:
        raise
    except OSError as error:
        raise RejectedInput(f"cannot read the class map {path}: {error.strerror}") from error
    except (csv.Error, ValueError) as error:
        raise RejectedInput(
            f"{path} is not a class map: write lines `class name,teacher output`"
        ) from error
    missing = [name for name in classes if name not in pairs]
    if missing:
        raise RejectedInput(
            f"{path} has no line for class {missing[0]!r} ({len(missing)} missing): add them"
        )
    return np.array([pairs[name] for name in classes], np.int64)


def _by_name(names: Sequence[str], classes: Sequence[str], who: str) -> NDArray[np.int64]:
    at = {name: i for i, name in enumerate(names)}
    missing = [name for name in classes if name not in at]
    if missing:
        raise RejectedInput(
            f"{who} has no class {missing[0]!r} ({len(missing)} missing): give --class-map FILE"
        )
    return np.array([at[name] for name in classes], np.int64)


def wordnet_ids(outputs: int) -> Sequence[str] | None:
    """The WordNet id of each output of a network trained on one of timm's ImageNet variants; None for other sizes."""
    from timm.data.imagenet_info import ImageNetInfo

    if outputs not in IMAGENET_VARIANTS:
        return None
    names: Sequence[str] = ImageNetInfo(IMAGENET_VARIANTS[outputs]).label_names()  # type: ignore[no-untyped-call]
    return names
