"""Which teacher output belongs to which class of the data set, where the two number classes differently."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import LabelCodec
from labelstore.errors import RejectedInput, UsageError
from labelstore.images.class_names import VARIANTS, variant_of
from labelstore.images.class_names import wordnet_ids as ids_of_variant
from labelstore.store.label_outputs import Outputs
from labelstore.teachers.teacher import Teacher

LabelClasses: TypeAlias = Literal["data", "teacher", "none", "embedding"]
"""Classes of the labels: those of the data set, all outputs of the teacher, all outputs where none is a class of the
images, or all outputs as an embedding."""
NAMED_SOURCE = "class names"
"""Source of a map that follows from the teacher's own class names."""
MAX_NAMES_BYTES = 64 * 1024**2


@dataclass(frozen=True, kw_only=True)
class OutputChoice:
    """Which of a teacher's outputs its labels keep, and what they are."""

    columns: NDArray[np.int64] | None
    """(C,) outputs that are kept, in the order of the data set's classes; None keeps all of them."""
    meaning: Outputs
    """What the kept outputs mean."""
    source: str | None
    """Where the map came from, as it was given."""

    @classmethod
    def of(
        cls,
        teacher: Teacher,
        codec: LabelCodec,
        classes: Sequence[str],
        source: str | Path | None = None,
        label_classes: LabelClasses = "data",
    ) -> OutputChoice:
        """Choose the outputs of labels for these classes; UsageError or RejectedInput where they do not fit.

        Raw outputs of a teacher that has another number of outputs than there are classes, no names for them and no
        map are kept as they are: they are a projection head's.
        """
        check_label_classes(label_classes)
        if label_classes == "none":
            if source is not None:
                raise UsageError(
                    f"class map {source} with classes none: a map says which outputs are classes of the images, leave "
                    "one of the two out"
                )
            return cls(columns=None, meaning=Outputs.none(), source=None)
        outputs = teacher.row.num_classes
        if label_classes == "embedding":
            _check_embedding(codec, source)
            return cls(columns=None, meaning=Outputs.none("embedding"), source=None)
        unnamed = source is None and teacher.class_names is None
        if codec.takes == "outputs" and unnamed and outputs != len(classes):
            return cls(columns=None, meaning=Outputs.none(), source=None)
        chosen = class_map(teacher, classes, source)
        if chosen is None:
            return cls(columns=None, meaning=Outputs.classes(len(classes)), source=None)
        said = NAMED_SOURCE if source is None else str(source)
        return cls.by_map(chosen, outputs, said, label_classes)

    @classmethod
    def by_map(
        cls, chosen: NDArray[np.int64], outputs: int, source: str, label_classes: LabelClasses
    ) -> OutputChoice:
        """Labels of the classes whose outputs are `chosen` (classes,), or of all outputs of the teacher."""
        if label_classes == "teacher":
            meaning = Outputs.mapped(chosen.tolist(), outputs, len(chosen), source)
            return cls(columns=None, meaning=meaning, source=source)
        return cls(columns=chosen, meaning=Outputs.classes(len(chosen)), source=source)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], meaning: Outputs) -> OutputChoice:
        """As a label set recorded it."""
        recorded = facts.get("class_map")
        columns = None if recorded is None else np.asarray(recorded["outputs"], np.int64)
        source = meaning.source if recorded is None else str(recorded["source"])
        return cls(columns=columns, meaning=meaning, source=source)

    @property
    def drops(self) -> bool:
        """Whether some outputs of the teacher are left out of its labels."""
        return self.columns is not None

    def to_record(self) -> dict[str, Any] | None:
        """`class_map` of a label set's facts: its source and the outputs that are kept; None where all are."""
        if self.columns is None:
            return None
        return {"source": self.source, "outputs": self.columns.tolist()}


def check_label_classes(label_classes: str) -> None:
    """UsageError for what is none of `LabelClasses`."""
    if label_classes not in get_args(LabelClasses):
        raise UsageError(
            f"classes={label_classes!r}: choose data (those of the images), teacher (all of its outputs), none "
            "(all of its outputs, and none is a class of the images) or embedding (a point in space)"
        )


def _check_embedding(codec: LabelCodec, source: str | Path | None) -> None:
    if codec.takes != "outputs":
        raise UsageError(
            f"classes='embedding' with {codec.name} labels, which are probabilities: an embedding is kept by "
            "`compression=logits` or pq"
        )
    if source is not None:
        raise UsageError(
            f"class map {source} with classes='embedding': an embedding has no classes, leave one out"
        )


def class_map(
    teacher: Teacher, classes: Sequence[str], source: str | Path | None = None
) -> NDArray[np.int64] | None:
    """(classes of the data set,) the teacher's output of each; None where output c is class c.

    `source` is a CSV file of `class name,teacher output` lines, or "wnid" for folders named by WordNet ids
    and a teacher trained on one of timm's ImageNet variants. Without it a teacher that names its classes is
    matched by name, and any other must have as many outputs as the data set has classes (UsageError).
    """
    outputs = teacher.row.num_classes
    if source is not None:
        chosen = map_from(source, classes, outputs)
    elif teacher.class_names is not None and tuple(teacher.class_names) != tuple(classes):
        if not set(classes) <= set(teacher.class_names):
            strange = next(name for name in classes if name not in teacher.class_names)
            raise UsageError(
                f"the teacher was not trained on class {strange!r} of these images: give a class map, a file of lines "
                "`class name,teacher output`"
            )
        chosen = _by_name(teacher.class_names, classes, "the teacher")
    elif outputs != len(classes):
        raise UsageError(
            f"the teacher has {outputs} classes and the images {len(classes)}: give a class map, a file of lines "
            "`class name,teacher output`, or wnid for ImageNet folders"
        )
    else:
        return None
    return Outputs.mapped(chosen.tolist(), outputs, len(classes), "").of_class


def map_from(source: str | Path, classes: Sequence[str], outputs: int) -> NDArray[np.int64]:
    """(classes,) the output of each class, as a file says, or "wnid" for folders named by WordNet ids."""
    if str(source) != "wnid":
        return _from_file(Path(source), classes)
    names = wordnet_ids(outputs)
    if names is None:
        sizes = ", ".join(str(len(ids_of_variant(variant))) for variant in VARIANTS)
        raise UsageError(
            f"class map wnid knows ImageNet teachers of {sizes} outputs; this one has {outputs}: give a file"
        )
    return _by_name(names, classes, f"timm's {outputs}-class ImageNet")


def names_from(source: str | Path, outputs: int) -> list[str]:
    """The name of each of a teacher's outputs: a file of one name per line, or a variant of ImageNet as timm calls it.

    RejectedInput for a file that cannot be read, or names another number of outputs.
    """
    if str(source) in VARIANTS:
        names = list(ids_of_variant(str(source)))
    else:
        names = [line.strip() for line in _read_text(Path(source), "class names").split("\n")]
        while names and not names[-1]:
            names.pop()
    if len(names) != outputs or not all(names):
        raise RejectedInput(
            f"{source} has {len(names)} names, and the teacher {outputs} outputs: give a file of one name per line, in "
            f"the order of the outputs, or one of {', '.join(VARIANTS)}"
        )
    return names


def _read_text(path: Path, what: str) -> str:
    """UTF-8 text, its lines ended by "\\n" and without the byte order mark that spreadsheets write.

    RejectedInput where it is none.
    """
    try:
        if path.stat().st_size > MAX_NAMES_BYTES:
            raise RejectedInput(f"{path} is larger than any file of {what}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RejectedInput(f"cannot read the {what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RejectedInput(f"{path} is not UTF-8 text: save the {what} as CSV in UTF-8") from error


def _from_file(path: Path, classes: Sequence[str]) -> NDArray[np.int64]:
    reader = csv.reader(_read_text(path, "class map").split("\n"))
    pairs: dict[str, int] = {}
    try:
        for row in filter(None, reader):
            try:
                name, output = row[0].strip(), int(row[1])
            except (IndexError, ValueError):
                raise RejectedInput(
                    f"{path}, line {reader.line_num}: {','.join(row)[:80]!r} is not `class name,teacher output`, "
                    "for example `tench,0`"
                ) from None
            if pairs.setdefault(name, output) != output:
                raise RejectedInput(
                    f"{path}, line {reader.line_num}: class {name!r} has output {output} here and {pairs[name]} above: "
                    "give it one"
                )
    except csv.Error as error:
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
            f"{who} has no class {missing[0]!r} ({len(missing)} missing): give a class map, a file of lines `class "
            "name,teacher output`"
        )
    return np.array([at[name] for name in classes], np.int64)


def wordnet_ids(outputs: int) -> Sequence[str] | None:
    """The WordNet id of each output of a network trained on one of timm's ImageNet variants; None for other sizes."""
    variant = variant_of(outputs)
    return None if variant is None else ids_of_variant(variant)
