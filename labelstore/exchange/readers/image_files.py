"""Formats with one label file per image: which file is which image's, and what the first ones hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labelstore.commit.lease_keeper import Progress
from labelstore.errors import RejectedInput, StorageError
from labelstore.exchange.labels import Contents, ImageLabels
from labelstore.exchange.source import BadFile
from labelstore.images import ImageSource, image_size
from labelstore.untrusted.refusal import Refused, named

LOOKED_AT = 16
"""Label files that are tried for what the source holds; the first that can be read decides."""
MAX_LISTED = 10_000
"""Files without an image that are kept by name; all are counted."""


@dataclass(kw_only=True)
class ImageFiles:
    """A source with one file per image. `parse(path, height, width)` reads one; it raises Refused."""

    folder: Path
    names: Sequence[str]
    """Per image row its file, relative to the folder."""
    contents: Contents
    parse: Callable[[Path, int, int, int], ImageLabels]
    """(path, image row, height, width) -> labels."""
    parse_many: Callable[[Sequence[Path], Sequence[tuple[int, int]]], list[ImageLabels]] | None = (
        None
    )
    """(paths, heights and widths) -> labels, of all or Refused."""
    unmatched: Sequence[str] = ()
    lost: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    bad: Sequence[BadFile] = ()

    def file_of(self, image: int) -> Path:
        """The label file of an image."""
        return self.folder / self.names[image]

    def prepare(self, scratch: Path | None, progress: Progress) -> None:
        """Nothing: files are read image by image."""

    def read(self, image: int, height: int, width: int) -> ImageLabels:
        """Labels of an image of this size. RejectedInput naming the file."""
        path = self.file_of(image)
        with named(path):
            return self.parse(path, image, height, width)

    def read_many(
        self, images: Sequence[int], sizes: Sequence[tuple[int, int]]
    ) -> list[ImageLabels] | None:
        """Labels of several images, where the format checks them together and finds nothing wrong."""
        if self.parse_many is None:
            return None
        try:
            return self.parse_many([self.file_of(image) for image in images], sizes)
        except (Refused, MemoryError):
            return None  # one of them is to be named

    def close(self) -> None:
        """Nothing was laid out."""


def first_contents(
    folder: Path, names: Sequence[str], look: Callable[[Path], Contents]
) -> Contents:
    """What the first readable one of a few label files holds; RejectedInput, the first file's, where none is."""
    problem: RejectedInput | None = None
    step = max(1, len(names) // LOOKED_AT)
    tried = list(dict.fromkeys((names[0], *names[::step][:LOOKED_AT])))
    for name in tried:
        try:
            with named(folder / name):
                return look(folder / name)
        except RejectedInput as error:
            problem = problem or error
    assert problem is not None
    raise problem


def label_folder(source: Path, images: ImageSource, names: Sequence[str], format_name: str) -> Path:
    """The folder below which label files are named like images; RejectedInput where there is none.

    It is `source`, or inside it the last one, two or three folders of the image folder's path: FKD keeps
    `SAVE/imagenet/train/n01440764/...` for images in `.../imagenet/train`. Folders that hold one folder and nothing
    else are looked into as well.
    """
    if not source.is_dir():
        raise RejectedInput(f"{source} is not a folder: give the folder of the {format_name} files")
    parts = images.root.absolute().parts
    step = max(1, len(names) // LOOKED_AT)
    candidates = [source, *(source.joinpath(*parts[-n:]) for n in (1, 2, 3) if n < len(parts))]
    candidates += _only_folders(source)
    for candidate in candidates:
        if any((candidate / name).is_file() for name in (names[0], *names[::step])):
            return candidate
    tried = ", ".join(str(candidate / names[0]) for candidate in candidates[:2])
    raise RejectedInput(
        f"{source} holds no {format_name} file for the images of {images.root} (looked for {tried}): give the "
        "folder whose subfolders are named like the image folder's"
    )


def _only_folders(source: Path) -> list[Path]:
    """The folder in a folder that holds nothing else, and so on."""
    found: list[Path] = []
    while len(found) < 3:
        with os.scandir(found[-1] if found else source) as entries:
            inside = [entry for _, entry in zip(range(2), entries, strict=False)]
        if len(inside) != 1 or not inside[0].is_dir():
            break
        found.append(Path(inside[0].path))
    return found


def refuse_shared(names: Sequence[str], images: ImageSource) -> None:
    """RejectedInput where two images would have the same label file."""
    if len(set(names)) == len(names):
        return
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        if name in first:
            raise RejectedInput(
                f"images {images.keys[first[name]]} and {images.keys[row]} would both have label file {name}: "
                "their names differ only behind the first dot, so that the labels of one were lost"
            )
        first[name] = row


def size_or_none(images: ImageSource, row: int) -> tuple[int, int]:
    """Height and width of an image; 0, 0 for one that cannot be used, into which no box fits."""
    try:
        return image_size(images.file(images.keys[row]))
    except (RejectedInput, OSError):
        return 0, 0


def files_without_image(folder: Path, names: Sequence[str], ending: str) -> list[str]:
    """Label files below a folder that belong to no image, sorted; the first 10,000 by name."""
    known = set(names)
    found: list[str] = []
    for place, folders, files in os.walk(folder, onerror=_cannot_list):
        folders.sort()
        inside = Path(place).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for name in sorted(files):
            if name.endswith(ending) and prefix + name not in known and len(found) < MAX_LISTED:
                found.append(prefix + name)
    return found


def _cannot_list(error: OSError) -> None:
    raise StorageError(f"cannot list {error.filename}: {error.strerror}") from error
