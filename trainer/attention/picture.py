"""The picture: a row per image, and of every network its Grad-CAM over the crop and its guided backpropagation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import LabelStoreError, RejectedInput
from labelstore.images import ImageFile, check_key, file_finder
from labelstore.images.class_names import readable
from trainer.attention.maps import Attention
from trainer.config import TrainConfig, evaluation_split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 1.9
"""Inches of one picture."""
LETTERS = 24
"""Longest class name above a picture."""
HEAD_LETTERS = 38
"""Longest name of a network, above two pictures."""
FOOTER = (
    "Each map has its own scale. Above it: class of the map and its probability, red where the network predicts "
    "another class."
)
FOOTER_LETTER = 0.058
"""Inches of a letter of the footer, at 7 points, with some room."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One network's view of one image."""

    network: str
    crop: NDArray[np.uint8]
    """(S, S, 3), what it was shown."""
    attention: Attention
    class_names: tuple[str, ...] = ()
    """Names of its outputs; without them their numbers are shown."""

    def name_of(self, class_id: int) -> str:
        """A class of this network, for people."""
        return readable(self.class_names[class_id]) if self.class_names else f"class {class_id}"


def draw_attention(
    images: Sequence[tuple[str, NDArray[np.uint8]]], looked: Sequence[Sequence[Looked]]
) -> Figure:
    """Images as (name, (H, W, 3) pixels), and for each what every network sees, the same networks in the same order."""
    from matplotlib.figure import Figure

    networks = [found.network for found in looked[0]]
    width = CELL * (1 + 2 * len(networks))
    footer = fill(FOOTER, int(width / FOOTER_LETTER))
    bottom = 0.18 + 0.14 * (footer.count("\n") + 1)
    height = (CELL + 0.3) * len(images) + 0.53 + bottom
    figure = Figure(figsize=(width, height), dpi=120)
    columns = figure.add_gridspec(
        len(images), 1 + 2 * len(networks), left=0.01, right=0.99, wspace=0.05,
        hspace=0.16, top=1 - 0.78 / height, bottom=bottom / height,
    )  # fmt: skip
    for at, ((name, pixels), row) in enumerate(zip(images, looked, strict=True)):
        _cell(figure, columns[at, 0], pixels, _short(name, end=True), "black")
        for nth, found in enumerate(row):
            axes = _cell(
                figure, columns[at, 1 + 2 * nth], found.crop, _of_class(found), _colour(found)
            )
            _overlay(axes, found)
            axes = _cell(figure, columns[at, 2 + 2 * nth], _saliency(found.attention), "", "black")
            if at == 0:
                _heads(figure, axes, found, nth, bottom, height)
    figure.text(0.01, 0.08 / height, footer, fontsize=7, color="#555555", linespacing=1.3)
    return figure


def _heads(
    figure: Figure,
    axes: Any,  # noqa: ANN401 - matplotlib axes
    looked: Looked,
    nth: int,
    bottom: float,
    height: float,
) -> None:
    """A network's name over its two columns, and what these are."""
    box = axes.get_position()
    left = box.x0 - (box.width + 0.05 * box.width)
    seen, attention = looked.attention.feature_map, looked.attention
    figure.text(
        left, 1 - 0.2 / height, _short(looked.network, HEAD_LETTERS), fontsize=10, weight="bold"
    )
    words = f"Grad-CAM, {_short(seen.layer, 14)} {seen.height} x {seen.width}"
    figure.text(left, 1 - 0.42 / height, words, fontsize=7, color="#555555")
    figure.text(
        box.x0, 1 - 0.42 / height, _short(_method(attention), 40), fontsize=7, color="#555555"
    )
    if nth:
        x = left - 0.012 * box.width
        figure.add_artist(_line(x, bottom / height, 1 - 0.05 / height))


def _method(attention: Attention) -> str:
    """A line on the kind of gradients, and the activations that they pass as they are."""
    others = ", ".join(attention.others)
    if not attention.rectifiers:
        return f"gradient ({others} is no ReLU)" if others else "gradient (it has no ReLU)"
    return f"guided backpropagation, {others} plain" if others else "guided backpropagation"


def _line(x: float, low: float, high: float) -> Any:  # noqa: ANN401 - a matplotlib line
    from matplotlib.lines import Line2D

    return Line2D([x, x], [low, high], color="#bbbbbb", linewidth=0.8)


def _cell(figure: Figure, place: Any, pixels: Any, title: str, colour: str) -> Any:  # noqa: ANN401
    axes = figure.add_subplot(place)
    axes.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) < 96 else "antialiased")
    axes.set_axis_off()
    axes.set_title(title, fontsize=8, color=colour, loc="left", pad=3)
    return axes


def _overlay(axes: Any, looked: Looked) -> None:  # noqa: ANN401 - matplotlib axes
    cam, side = looked.attention.cam, looked.crop.shape[0]
    if cam.max() <= 0:
        axes.text(
            0.5, 0.5, "nothing speaks for it", transform=axes.transAxes, ha="center", fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
        return
    axes.imshow(
        enlarged(cam / cam.max(), side), cmap="turbo", alpha=0.5, vmin=0, vmax=1,
        extent=(-0.5, side - 0.5, side - 0.5, -0.5),
    )  # fmt: skip


def enlarged(cam: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """(h, w) as (side, side), bilinear between the places' centres."""
    import torch

    grid = torch.from_numpy(np.ascontiguousarray(cam))[None, None]
    large = torch.nn.functional.interpolate(grid, size=(side, side), mode="bilinear")
    picture: NDArray[np.float32] = large[0, 0].numpy()
    return picture


def _saliency(attention: Attention) -> NDArray[np.float32]:
    """Gradients as colours around grey; the strongest half per cent are cut off."""
    strongest = float(np.quantile(np.abs(attention.guided), 0.995))
    coloured = 0.5 + 0.5 * attention.guided / (strongest or 1.0)
    shown: NDArray[np.float32] = np.clip(coloured, 0, 1).astype(np.float32)
    return shown


def _of_class(looked: Looked) -> str:
    at = looked.attention
    return f"{_short(looked.name_of(at.class_id), LETTERS - 6)}  {at.probability:.2f}"


def _colour(looked: Looked) -> str:
    """Red where the network predicts another class than the map is of."""
    return "black" if looked.attention.class_id == looked.attention.predicted else "#a83232"


def _short(text: str, letters: int = LETTERS, *, end: bool = False) -> str:
    """A name of bounded length, in which a dollar sign begins no formula and nothing breaks a line."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if len(text) > letters:
        text = "…" + text[-letters + 1 :] if end else text[: letters - 1] + "…"
    return text.replace("$", r"\$")


def image_folders(configs: Sequence[TrainConfig]) -> list[Path]:
    """Image folders of the runs, those for validation first."""
    folders: list[Path | None] = []
    for own, name in (("val", "val"), ("train", "train")):
        for config in configs:
            data = config.data and (
                evaluation_split(config.data) if own == "val" else config.data / name
            )
            folders.append(getattr(config, own) or data)
    return list(dict.fromkeys(folder for folder in folders if folder is not None))


def find_image(text: str, folders: Sequence[Path]) -> ImageFile:
    """The file of that path, or the image of that key in the first of `folders` that has it.

    A folder may be anything that `labelstore create --images` takes. RejectedInput where there is none, or for a key
    that leads out of a folder.
    """
    try:
        if Path(text).is_file():
            return Path(text)
        key = check_key(text)
        for folder in folders:
            found = _in_folder(key, folder)
            if found is not None:
                return found
    except (OSError, ValueError) as error:
        if isinstance(error, LabelStoreError):
            raise
        # longer than names may be, or a NUL in it
        raise RejectedInput(f"no image {text[:80]!r}: {error}") from error
    where = f" in {', '.join(map(str, folders[:4]))}" if folders else ""
    raise RejectedInput(
        f"no image {text}{where}: give a file, or CLASS/NAME with `images` where it lies"
    )


def _in_folder(key: str, folder: Path) -> ImageFile | None:
    try:
        found = file_finder(folder)(key)
    except (RejectedInput, FileNotFoundError):
        # a folder that is not there any more, or does not have it: another one may
        return None
    return None if isinstance(found, Path) and not found.is_file() else found
