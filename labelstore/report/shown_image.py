"""One image with its hardest and easiest crops and what the teacher says of them (FerKD Fig. 3 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from labelstore.cropping.pictures import decode_rgb
from labelstore.errors import NotGenerated, RejectedInput, UsageError
from labelstore.images import digest
from labelstore.store.label_outputs import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from labelstore.images import ImageFile
    from labelstore.store import LabelSet

HARD, EASY = "#d1495b", "#1b6ca8"
MOST_INCHES = 200.0
"""Limit of a picture's height: with more crops and classes everything is drawn smaller."""


@dataclass(frozen=True, kw_only=True)
class ShownCrop:
    """One crop of an image, with the label's first classes."""

    crop: int
    kind: str
    """"hardest" or "easiest": smallest or largest max_probability of the image's crops."""
    top: int
    left: int
    height: int
    width: int
    flip: bool
    max_probability: float
    classes: tuple[tuple[str, float], ...]
    """(class, probability), the most probable first; classes in words for people, see `LabelSet.output_titles`."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **{name: getattr(self, name) for name in ("crop", "kind", "top", "left", "height", "width", "flip")},
            "max_probability": self.max_probability,
            "classes": [{"class": name, "probability": value} for name, value in self.classes],
        }  # fmt: skip


def shown_crops(
    labels: LabelSet, image: int | str, *, count: int = 3, top: int = 5
) -> list[ShownCrop]:
    """The `count` hardest and `count` easiest crops of an image (row or key), each with its `top` classes.

    UsageError for an image that the store does not have, NotGenerated where it has no labels.
    """
    if count < 1 or top < 1:
        raise UsageError(f"count {count}, top {top}: at least 1 each")
    store = labels.store
    (row,) = store.image_rows([image] if isinstance(image, str) else [int(image)])
    boxes, flips = labels.boxes([int(row)])[0], labels.flips([int(row)])[0]
    probs = labels.recover([int(row)])[0]
    largest = probs.max(axis=1)
    if np.isnan(largest).all():
        raise NotGenerated(
            f"{store.image_columns['key'][row]}: it was left out as bad and has no labels in {labels.name}"
        )
    order = np.argsort(largest, kind="stable")
    count = min(count, len(order) // 2) or 1
    names = labels.output_titles

    def shown(crop: int, kind: str) -> ShownCrop:
        first = np.argsort(-probs[crop], kind="stable")[:top]
        y, x, height, width = (int(edge) for edge in boxes[crop])
        return ShownCrop(
            crop=int(crop),
            kind=kind,
            top=y,
            left=x,
            height=height,
            width=width,
            flip=bool(flips[crop]),
            max_probability=float(largest[crop]),
            classes=tuple((names[i], float(probs[crop, i])) for i in first.tolist()),
        )

    hardest = [shown(int(crop), "hardest") for crop in order[:count]]
    easiest = [shown(int(crop), "easiest") for crop in order[::-1][:count] if len(order) > 1]
    return [*hardest, *easiest]


def draw_image(
    file: ImageFile, shown: Sequence[ShownCrop], *, title: str, due: bytes | None = None
) -> Figure:
    """The image with the crops' boxes, hardest in red and easiest in blue, and beside it each crop's classes.

    A box says its crop's number and first class.

    RejectedInput where the file's bytes have another digest than `due`, that of the image that was labelled.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    data = file.read_bytes()
    if due is not None and digest(data) != due:
        raise RejectedInput(
            f"{file} is not the image that was labelled: give what the store was made from"
        )
    pixels = decode_rgb(data, str(file))
    rows = max(sum(crop.kind == kind for crop in shown) for kind in ("hardest", "easiest"))
    bars = max((len(crop.classes) for crop in shown), default=0)
    height = min(max(3.6, max(1.5, 0.2 * bars) * rows), MOST_INCHES)
    figure = Figure(figsize=(11, height), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25), squeeze=False)[0]
    axes = left.subplots()
    axes.imshow(pixels)
    axes.set_axis_off()
    axes.set_title(figure_text(title), fontsize=9, loc="left")
    for kind, colour in (("hardest", HARD), ("easiest", EASY)):
        for at, crop in enumerate(crop for crop in shown if crop.kind == kind):
            corner = (crop.left, crop.top)
            axes.add_patch(
                Rectangle(
                    corner, crop.width, crop.height, fill=False, edgecolor=colour, linewidth=2
                )
            )
            _tag(axes, crop, at, colour)
    grid = right.subplots(rows, 4, squeeze=False, width_ratios=(1, 1.5, 1, 1.5))
    for axes in grid.flat:
        axes.set_axis_off()
    for half, kind in ((0, "hardest"), (2, "easiest")):
        chosen = [crop for crop in shown if crop.kind == kind]
        for at, crop in enumerate(chosen):
            cut = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
            grid[at, half].imshow(cut[:, ::-1] if crop.flip else cut)
            mark = ", mirrored" if crop.flip else ""
            grid[at, half].set_title(f"{kind} {crop.crop}{mark}", fontsize=8)
            _bars(grid[at, half + 1], crop, HARD if kind == "hardest" else EASY)
    return figure


def _tag(axes: Any, crop: ShownCrop, at: int, colour: str) -> None:  # noqa: ANN401 - matplotlib axes
    """The number and first class of the `at`-th crop of its kind, each in another corner of its box than the last."""
    is_low, is_right = at % 2 == 1, at % 4 >= 2
    name, value = crop.classes[0]
    axes.annotate(
        f"{crop.crop}: {figure_text(short(name.split(',')[0], 24))} {value:.2f}",
        (crop.left + is_right * crop.width, crop.top + is_low * crop.height),
        color="white",
        fontsize=8,
        xytext=(-3 if is_right else 3, 4 if is_low else -9),
        textcoords="offset points",
        ha="right" if is_right else "left",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5},
    )


def _bars(axes: Any, crop: ShownCrop, colour: str) -> None:  # noqa: ANN401 - matplotlib axes
    axes.set_axis_on()
    values = [value for _, value in crop.classes]
    axes.barh(range(len(values)), values, color=colour, height=0.65, alpha=0.75)
    for at, (name, value) in enumerate(crop.classes):
        axes.text(0.02, at, f"{figure_text(short(name, 24))}  {value:.2f}", va="center", fontsize=7)
    axes.set_xlim(0, 1)
    axes.set_ylim(max(len(values), 5) - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_xticks([0, 1])
    axes.tick_params(labelsize=6)
    axes.spines[["top", "right"]].set_visible(False)


def figure_text(text: str) -> str:
    """A dollar sign in a name begins no formula."""
    return text.replace("$", r"\$")
