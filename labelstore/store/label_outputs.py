"""What the outputs of a label set are: the classes of the data set, a teacher's outputs with a map, or no classes.

It is recorded with the label set and travels with it. Code that compares labels with the ground truth asks
`LabelSet.true_output`, and code that shows a class or an output asks `LabelSet.class_titles` or `output_titles`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow, TeacherRow
from labelstore.errors import RejectedInput, UsageError
from labelstore.images.class_names import readable

if TYPE_CHECKING:
    from labelstore.store.label_set import LabelSet
    from labelstore.store.store import Store

Kind: TypeAlias = Literal["classes", "mapped", "not classes", "embedding", "not recorded"]
OUTPUTS_ARE, OUTPUT_OF_CLASS = "outputs_are", "output_of_class"
"""Keys of a label set's facts."""
OUTPUT_NAMES = "output_names"
"""Key of a teacher's facts: the name of each of its outputs."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the C outputs of a label set are."""

    kind: Kind
    """"classes": output c is class c of the data set. "mapped": `of_class` says which outputs are classes, and the
    others are classes of the teacher alone. "not classes": those of a projection head, or of a teacher of other
    classes, of which a softmax can be taken. "embedding": a point in space (CLIP, DINO).
    "not recorded": neither stated nor proved."""
    of_class: NDArray[np.int64]
    """(classes,) the output of each class of the data set; empty where outputs are no classes."""
    source: str | None = None
    """Where a map came from, as it was given."""

    @classmethod
    def of(cls, row: LabelSetRow, num_classes: int) -> Outputs:
        """As the label set recorded it, for a data set of `num_classes` classes.

        A label set of an older version has no record. With as many outputs as there are classes, it was made
        with a check of their order; with others, it was made from a teacher of other classes, or imported, when
        only a user can say what the outputs are. RejectedInput for a record that is damaged.
        """
        said = row.facts.get(OUTPUTS_ARE)
        if said is None:
            if row.num_classes == num_classes:
                return cls.classes(num_classes)
            return cls.none("not recorded" if "imported_from" in row.facts else "not classes")
        if said == "classes" and row.num_classes == num_classes:
            return cls.classes(num_classes)
        if said == "mapped":
            record = dict(row.facts.get(OUTPUT_OF_CLASS) or {})
            return cls.mapped(
                record.get("outputs", ()), row.num_classes, num_classes, str(record.get("source"))
            )
        if said in ("not classes", "embedding", "not recorded"):
            return cls.none(cast("Kind", said))
        raise RejectedInput(
            f"label set {row.name} says of its {row.num_classes} outputs that they are {said!r}, with {num_classes} "
            f"classes: that is none of {', '.join(get_args(Kind))}"
        )

    @classmethod
    def classes(cls, num_classes: int) -> Outputs:
        """Output c is class c."""
        return cls(kind="classes", of_class=np.arange(num_classes, dtype=np.int64))

    @classmethod
    def none(cls, kind: Kind = "not classes") -> Outputs:
        """Outputs that are no classes of the data set."""
        return cls(kind=kind, of_class=np.empty(0, np.int64))

    @classmethod
    def mapped(
        cls, outputs: Sequence[int], num_outputs: int, num_classes: int, source: str
    ) -> Outputs:
        """Class c is output `outputs[c]` of `num_outputs`; RejectedInput where that cannot be."""
        of_class = np.asarray(outputs, np.int64)
        if of_class.shape != (num_classes,):
            raise RejectedInput(
                f"the map of outputs names {of_class.size} outputs for {num_classes} classes: give one for each"
            )
        if of_class.size and not (of_class.min() >= 0 and of_class.max() < num_outputs):
            wrong = of_class[(of_class < 0) | (of_class >= num_outputs)][0]
            raise RejectedInput(
                f"the class map names teacher output {wrong}: it has outputs 0-{num_outputs - 1}"
            )
        if len(np.unique(of_class)) != num_classes:
            raise RejectedInput(
                "the class map gives one teacher output to two classes: each output once"
            )
        if num_outputs == num_classes and bool((of_class == np.arange(num_classes)).all()):
            return cls.classes(num_classes)
        return cls(kind="mapped", of_class=of_class, source=source)

    @property
    def are_classes(self) -> bool:
        """Whether every class of the data set has an output."""
        return self.kind in ("classes", "mapped")

    def to_record(self) -> dict[str, Any]:
        """Return what the facts of a label set keep."""
        record = {"source": self.source, "outputs": self.of_class.tolist()}
        return {
            OUTPUTS_ARE: self.kind,
            OUTPUT_OF_CLASS: record if self.kind == "mapped" else None,
        }

    def same_as(self, other: Outputs) -> bool:
        """Whether the outputs mean the same, wherever that was said."""
        return self.kind == other.kind and np.array_equal(self.of_class, other.of_class)

    def of_truth(self, class_ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Outputs of classes of the data set, -1 (no ground truth) for -1."""
        outputs: NDArray[np.int64] = np.append(self.of_class, -1)[class_ids]
        return outputs

    def describe(self, num_outputs: int) -> str:
        """In a few words, for people."""
        if self.kind == "mapped":
            return f"{num_outputs:,} outputs of the teacher, {len(self.of_class):,} of them classes ({self.source})"
        words = {
            "classes": "the classes of the images",
            "not classes": f"{num_outputs:,} outputs that are no classes of the images",
            "embedding": f"{num_outputs:,} values of an embedding",
            "not recorded": f"{num_outputs:,} outputs; which of them are classes of the images is not recorded",
        }
        return words[self.kind]


def refusal_of(labels: LabelSet) -> RejectedInput:
    """Why labels cannot be compared with a ground truth, and what to do."""
    if labels.outputs.kind == "embedding":
        return RejectedInput(
            f"label set {labels.name} has {labels.num_classes} values of an embedding, which are no classes: its "
            "labels cannot be compared with the ground truth"
        )
    is_open = labels.outputs.kind == "not recorded"
    what = "and nothing says which of them are" if is_open else "that are none of"
    return RejectedInput(
        f"label set {labels.name} has {labels.num_classes} outputs {what} the {len(labels.store.class_names)} classes "
        "of the images: its labels cannot be compared with the ground truth; say which output is which class "
        "(`labelstore classes` with a class map), or do without the ground truth"
    )


def check_same_outputs(first: LabelSet, other: LabelSet) -> None:
    """UsageError where output c of one label set is something else in the other."""
    if first.num_classes != other.num_classes or not first.outputs.same_as(other.outputs):
        words = [
            f"{each.name} has {each.outputs.describe(each.num_classes)}" for each in (first, other)
        ]
        raise UsageError(
            f"label set {words[0]}, and {words[1]}: choose label sets whose outputs are the same classes"
        )


def output_names(outputs: Outputs, classes: Sequence[str], num_outputs: int) -> tuple[str, ...]:
    """Names of the C outputs in conditions and tables: a class has the data set's, the others their number.

    No two are alike: folders may be called by numbers.
    """
    word = "output " if outputs.are_classes else ""
    names = [f"{word}{output}" for output in range(num_outputs)]
    for name, output in zip(classes, outputs.of_class.tolist(), strict=False):
        names[output] = name
    return tuple(names)


def class_titles(
    classes: Sequence[str], row: LabelSetRow | None, teacher: TeacherRow | None, outputs: Outputs
) -> tuple[str, ...]:
    """Names for people of the classes of the data set.

    A folder's own name, where it is one; for a WordNet id what it means; for a number the name that the teacher
    has for that class, if it is known. No two are alike.
    """
    own = _teachers_names(row, teacher) if outputs.are_classes else []
    titles = [
        own[output] if own and name.isdecimal() else readable(name)
        for name, output in zip(classes, _or_numbers(outputs, classes), strict=True)
    ]
    return _told_apart(titles, [f"({name})" for name in classes])


def titles_of_store(store: Store) -> tuple[str, ...]:
    """Names for people of a store's classes, with what its first label set of these classes knows of them."""
    for row in store.catalogue.label_sets.all():
        outputs = Outputs.of(row, len(store.class_names))
        if outputs.are_classes:
            return class_titles(store.class_names, row, store.teacher(row.teacher), outputs)
    return class_titles(store.class_names, None, None, Outputs.none())


def output_titles(
    classes: Sequence[str], row: LabelSetRow, teacher: TeacherRow, outputs: Outputs
) -> tuple[str, ...]:
    """Names for people of the C outputs: as of the class that an output is, else the teacher's, else its number."""
    titles = list(_teachers_names(row, teacher)) or [
        f"output {output}" for output in range(row.num_classes)
    ]
    named = class_titles(classes, row, teacher, outputs)
    for title, output in zip(named, outputs.of_class.tolist(), strict=False):
        titles[output] = title
    return _told_apart(titles, [f"(output {output})" for output in range(row.num_classes)])


def student_names(
    outputs: Outputs, classes: Sequence[str], titles: Sequence[str]
) -> tuple[str, ...]:
    """Names of the C outputs of a student that learns these labels, each once; none where outputs are no classes.

    A class has its folder's name, by which the network is evaluated, and the other outputs their title.
    """
    if not outputs.are_classes:
        return ()
    folders = set(classes)
    names = [
        f"{title} (output {output})" if title in folders else title
        for output, title in enumerate(titles)
    ]
    for name, output in zip(classes, outputs.of_class.tolist(), strict=True):
        names[output] = name
    return tuple(names)


def _or_numbers(outputs: Outputs, classes: Sequence[str]) -> Sequence[int]:
    numbers: list[int] = outputs.of_class.tolist()
    return numbers if outputs.are_classes else range(len(classes))


def _told_apart(titles: Sequence[str], marks: Sequence[str]) -> tuple[str, ...]:
    """The titles, with its mark behind each that is there more than once: ImageNet has two cranes."""
    counts = Counter(titles)
    return tuple(
        title if counts[title] == 1 else f"{title} {mark}"
        for title, mark in zip(titles, marks, strict=True)
    )


def _teachers_names(row: LabelSetRow | None, teacher: TeacherRow | None) -> list[str]:
    """The teacher's names of the C outputs of a label set, for people; empty where they are not known."""
    if row is None or teacher is None:
        return []
    own: Sequence[str] = teacher.facts.get(OUTPUT_NAMES) or ()
    chosen: Mapping[str, Any] = row.facts.get("class_map") or {}
    if chosen:
        outputs = chosen.get("outputs", ())
        return [readable(own[o]) for o in outputs] if own and max(outputs) < len(own) else []
    return [readable(name) for name in own] if len(own) == row.num_classes else []


def short(name: str, width: int = 32) -> str:
    """A name as a table shows it: cut at `width` characters.

    >>> short("tench, Tinca tinca"), short("great white shark, white shark, man-eater", 24)
    ('tench, Tinca tinca', 'great white shark, whit…')
    """
    return name if len(name) <= width else name[: width - 1] + "…"


def common_temperature(label_sets: Sequence[LabelSet]) -> float:
    """The T0 of a label set that cannot be brought to another temperature, otherwise that of the first."""
    fixed = [labels for labels in label_sets if labels.codec.fixed_temperature is not None]
    return (fixed or label_sets)[0].temperature
