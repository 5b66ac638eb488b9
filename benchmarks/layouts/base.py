"""What a layout of labels on disk must offer to be compared: write, read an image, a random batch, everything.

All layouts hold what FKD's files hold: class ids and probabilities (K = 5), boxes and flips, without the tail. Formats
that can hold float16 and uint16 get them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.label_model import ModelLabels

Crops = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""Class ids (..., K), probabilities (..., K), boxes (..., 4), flips (...,)."""
Parts = Iterable[tuple[range, ModelLabels]]
"""Labels of consecutive images."""
FIELDS = ("class_id", "probability", "box", "flip")
DTYPES = {"class_id": "<u2", "probability": "<f2", "box": "<u2", "flip": "u1"}
WIDTHS = {"class_id": 5, "probability": 5, "box": 4, "flip": 1}
RECORD = np.dtype(
    [("class_id", "<u2", 5), ("probability", "<f2", 5), ("box", "<u2", 4), ("flip", "u1")]
)
"""One crop in 29 bytes."""


class Reader(ABC):
    """Labels that a layout wrote, open for reading."""

    @abstractmethod
    def image(self, row: int) -> Crops:
        """All crops of one image, (M, ...)."""

    def batch(self, rows: NDArray[np.int64], crops: NDArray[np.int64]) -> Crops:
        """Crops (B, m) of images (B,): arrays (B, m, ...). One image after the other, unless the layout knows better."""
        parts = [
            tuple(field[chosen] for field in self.image(row))
            for row, chosen in zip(rows.tolist(), crops, strict=True)
        ]
        ids, probs, box, flip = (np.stack(field) for field in zip(*parts, strict=True))
        return ids, probs, box, flip

    def everything(self, num_images: int) -> Iterator[Crops]:
        """All labels in storage order, in parts of the layout's choice: (n, M, ...) or (M, ...)."""
        return (self.image(row) for row in range(num_images))

    def close(self) -> None:  # noqa: B027 - many have nothing to close
        """Close the files."""


class Layout(ABC):
    """A way to keep labels in files."""

    name: str
    note: str
    packages: tuple[str, ...] = ("numpy",)
    """Distributions that read and write it."""
    random_access: bool = True
    """Whether the layout can give a random batch at all."""
    is_a_copy: bool = False
    """Whether it is made from another layout's files, so that a killed writer loses nothing of its own."""
    files_grow: bool = False
    """Whether more images make more files."""

    @abstractmethod
    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        """Write all images into `folder`, which is not there yet, part by part."""

    @abstractmethod
    def reader(self, folder: Path) -> Reader:
        """Open what was written."""

    def prepare_remote(self, folder: Path) -> None:  # noqa: B027 - files are served as they are
        """Make what `write` wrote ready to be read over HTTP."""

    def remote_reader(self, url: str, folder: Path, num_images: int) -> Reader | None:
        """The same files over HTTP at `url`; None where the layout's library cannot. `folder` is for a cache."""
        return None

    def data(self, folder: Path) -> Path:
        """What of `folder` a reader needs on its disk: its bytes are the layout's."""
        return folder

    @property
    def versions(self) -> str:
        """Names and versions of the libraries."""
        return ", ".join(f"{name} {version(name)}" for name in self.packages)


def plain(labels: ModelLabels) -> dict[str, NDArray[Any]]:
    """The fields (n, M, ...) in their dtypes."""
    return {
        "class_id": labels.class_ids.astype("<u2"),
        "probability": labels.probs.astype("<f2"),
        "box": labels.box,
        "flip": labels.flip.astype("u1"),
    }


def records(labels: ModelLabels) -> NDArray[np.void]:
    """Flat records (n, M)."""
    fields = plain(labels)
    found = np.empty(labels.flip.shape, RECORD)
    for name, array in fields.items():
        found[name] = array
    return found


def fields_of(found: NDArray[np.void]) -> Crops:
    """Records (...) -> fields (..., width)."""
    return found["class_id"], found["probability"], found["box"], found["flip"]
