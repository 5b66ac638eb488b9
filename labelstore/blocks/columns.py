"""The columns of a crop: their names, what they mean, and which arrays they are read from.

entropy         -sum p log p of the recovered label, in nats
area            height x width of the box over that of the image: RandomResizedCrop's scale
aspect          width / height of the box, in pixels
centre_y, _x    centre of the box in units of the image's height and width (FerKD Fig. 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import UsageError

Kind = Literal["int", "float", "bool", "text"]
DTYPES = {"int": "i4", "float": "f4", "bool": "?", "text": "i4"}
"""NumPy dtype of each kind of column; a text's are its codes."""
Source = Literal["catalogue", "box", "flip", "labels", "mask"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the crop table."""

    kind: Kind
    source: Source
    """Where it is read from; of labels, only the arrays that are needed."""
    about: str


def _column(kind: Kind, source: Source, about: str) -> Column:
    return Column(kind=kind, source=source, about=about)


COLUMNS: dict[str, Column] = {
    "image": _column("int", "catalogue", "image row"),
    "key": _column("text", "catalogue", "path of the image below the image folder"),
    "class": _column("text", "catalogue", "ground truth, by name"),
    "class_name": _column("text", "catalogue", "what that class is, in words for people"),
    "class_id": _column("int", "catalogue", "ground truth, -1 where there is none"),
    "image_height": _column("int", "catalogue", "pixels"),
    "image_width": _column("int", "catalogue", "pixels"),
    "crop": _column("int", "catalogue", "crop number within the image, 0 to M - 1"),
    "top": _column("int", "box", "pixels of the original image"),
    "left": _column("int", "box", "pixels of the original image"),
    "height": _column("int", "box", "pixels of the original image"),
    "width": _column("int", "box", "pixels of the original image"),
    "flip": _column("bool", "flip", "mirrored left to right"),
    "area": _column("float", "box", "share of the image's area"),
    "aspect": _column("float", "box", "width / height"),
    "centre_y": _column("float", "box", "centre of the box, 0 to 1 of the image's height"),
    "centre_x": _column("float", "box", "centre of the box, 0 to 1 of the image's width"),
    "max_probability": _column("float", "labels", "largest probability of the label"),
    "ground_truth_probability": _column("float", "labels", "what the label gives the ground truth"),
    "entropy": _column("float", "labels", "of the recovered label, nats"),
    "kept_mass": _column("float", "labels", "probability of the kept classes together"),
    "top1": _column("text", "labels", "the teacher's class, by name"),
    "top1_name": _column("text", "labels", "what that class is, in words for people"),
    "top1_id": _column("int", "labels", "the teacher's class"),
    "agrees": _column("bool", "labels", "the teacher's class is the ground truth"),
    "agrees_top5": _column("bool", "labels", "the ground truth is among the teacher's first five"),
    "region": _column("text", "mask", "TOO_HARD, HARD, IMPORTANT or TOO_EASY under a mask"),
}
"""Name -> column, in the order of the crop table."""

USUAL = (
    "image", "key", "class", "crop", "top", "left", "height", "width", "flip", "area", "aspect",
    "centre_y", "centre_x", "max_probability", "ground_truth_probability", "entropy", "top1",
)  # fmt: skip
"""What a table of crops has where no columns are asked for; with a mask also `region`."""

OF_GROUND_TRUTH = frozenset({"ground_truth_probability", "agrees", "agrees_top5"})
"""Columns that compare the label with the ground truth: only where outputs are classes of the data set."""


def check_columns(names: Sequence[str], *, with_mask: bool) -> tuple[str, ...]:
    """The names, each once, if all are columns; UsageError otherwise, and for `region` without a mask."""
    for name in names:
        if name not in COLUMNS:
            raise UsageError(f"no column {name!r}: choose from {', '.join(COLUMNS)}")
        if COLUMNS[name].source == "mask" and not with_mask:
            raise UsageError(f"column {name!r} needs a mask: name one with `mask`")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class Text:
    """Names of crops: `names[codes]`, and nothing where a code is negative."""

    codes: NDArray[np.int32]
    """Any shape."""
    names: NDArray[Any]
    """(number of names,) object; names differ from each other."""

    def where(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether the name of each code is among those `chosen` (number of names,); False where there is none."""
        # the last entry answers for -1
        answers = np.concatenate([chosen, np.zeros(1, bool)])
        return answers[np.maximum(self.codes, -1)]

    def as_objects(self) -> NDArray[Any]:
        """The names in the shape of the codes, None where there is none."""
        names = np.empty(len(self.names) + 1, object)
        names[:-1] = self.names
        return names[np.maximum(self.codes, -1)]
