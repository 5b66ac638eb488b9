"""What an importer is: a format finds its labels for the images of a folder, and reads them image by image.

A format is a function `open_FORMAT(source, images, stated) -> LabelSource`. Where a file belongs to one image, `read`
opens it; where files hold pieces of many images, opening the source lays them out by image first (`scattered`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from labelstore.commit.lease_keeper import Progress
from labelstore.errors import RejectedInput
from labelstore.exchange.labels import Contents, ImageLabels
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """One file that cannot be used."""

    file: str
    reason: str
    image: str | None = None
    """Key of the image whose labels it would have been."""


class LabelSource(Protocol):
    """Labels of one source for the images of one folder. Goes to worker processes, so it must be picklable."""

    contents: Contents
    unmatched: Sequence[str]
    """Label files that belong to no image of the folder."""
    lost: Sequence[str]
    """What the files tell of their crops and a store cannot keep."""
    facts: Mapping[str, Any]
    """What was found out about the source, as JSON values."""
    bad: Sequence[BadFile]
    """Files that were found unusable while the source was opened."""

    def file_of(self, image: int) -> Path:
        """Where the labels of an image are."""
        ...

    def prepare(self, scratch: Path | None, progress: Progress) -> None:
        """What has to be done once before images are read; `scratch` is where large files may lie."""
        ...

    def read(self, image: int, height: int, width: int) -> ImageLabels:
        """Labels of an image of this size, M crops. RejectedInput naming the file."""
        ...

    def read_many(
        self, images: Sequence[int], sizes: Sequence[tuple[int, int]]
    ) -> list[ImageLabels] | None:
        """`read` of several images of these heights and widths at once, the same labels in less time.

        None where a format has no faster way, or anything about them is not as it must be: `read` then says what.
        """
        ...

    def close(self) -> None:
        """Remove what was laid out."""
        ...


def read_together(
    source: LabelSource, images: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> list[ImageLabels | RejectedInput]:
    """Labels of several images; for an image that cannot be used, the reason instead."""
    many = source.read_many(images, sizes) if len(images) > 1 else None
    if many is not None:
        return [*many]
    found: list[ImageLabels | RejectedInput] = []
    for image, (height, width) in zip(images, sizes, strict=True):
        try:
            found.append(source.read(image, height, width))
        except RejectedInput as error:
            found.append(error)
    return found


OpenSource: TypeAlias = Callable[[Path, ImageSource, Stated], LabelSource]
