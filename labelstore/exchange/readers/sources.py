"""The two kinds of sources: a label file per image, and files that hold pieces of many images.

Of the first kind, what matters is which file is which image's, and what the first ones hold. Files of the second kind
are read once and sorted by image in a scratch folder: a piece names images and gives one row of numbers for each of
some crops of theirs. Rows go to arrays (images, M, ...) on disk, which workers map; the n-th row that an image gets is
its crop n, unless the piece numbers them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.durable import storage_errors
from labelstore.commit.lease_keeper import Progress
from labelstore.errors import RejectedInput, StorageError, UsageError
from labelstore.exchange.labels import BadFile, Contents, ImageLabels, LabelSource
from labelstore.images import ImageSource, image_size
from labelstore.untrusted.refusal import Refused, named

LOOKED_AT = 16
"""Label files that are tried for what the source holds; the first that can be read decides."""
MAX_LISTED = 10_000
"""Files without an image that are kept by name; all are counted."""


@dataclass(kw_only=True)
class ImageFiles(LabelSource):
    """A source with one file per image. `parse(path, image row, height, width)` reads one; it raises Refused."""

    folder: Path
    names: Sequence[str]
    """Per image row its file, relative to the folder."""
    parse: Callable[[Path, int, int, int], ImageLabels]
    parse_many: Callable[[Sequence[Path], Sequence[tuple[int, int]]], list[ImageLabels]] | None = (
        None
    )
    """(paths, heights and widths) -> labels, of all or Refused."""

    def file_of(self, image: int) -> Path:
        """The label file of an image."""
        return self.folder / self.names[image]

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


def first_contents(
    folder: Path, names: Sequence[str], look: Callable[[Path], Contents]
) -> Contents:
    """Look at the first readable one of a few label files; RejectedInput, the first file's, where none is."""
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


def check_folder(source: Path, format_name: str) -> None:
    """RejectedInput unless the source is a folder."""
    if not source.is_dir():
        raise RejectedInput(f"{source} is not a folder: give the folder of the {format_name} files")


def label_folder(source: Path, images: ImageSource, names: Sequence[str], format_name: str) -> Path:
    """The folder below which label files are named like images; RejectedInput where there is none.

    It is `source`, or inside it the last one, two or three folders of the image folder's path: FKD keeps
    `SAVE/imagenet/train/n01440764/...` for images in `.../imagenet/train`. Folders that hold one folder and nothing
    else are looked into as well.
    """
    check_folder(source, format_name)
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
    folders: list[Path] = []
    while len(folders) < 3:
        with os.scandir(folders[-1] if folders else source) as entries:
            inside = [entry for _, entry in zip(range(2), entries, strict=False)]
        if len(inside) != 1 or not inside[0].is_dir():
            break
        folders.append(Path(inside[0].path))
    return folders


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
    unmatched: list[str] = []
    for place, folders, files in os.walk(folder, onerror=_cannot_list):
        folders.sort()
        inside = Path(place).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for name in sorted(files):
            if name.endswith(ending) and prefix + name not in known and len(unmatched) < MAX_LISTED:
                unmatched.append(prefix + name)
    return unmatched


def _cannot_list(error: OSError) -> None:
    raise StorageError(f"cannot list {error.filename}: {error.strerror}") from error


MAX_SCRATCH = 1 << 44
HAVE = "have"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one file (or a part of one) says of r crops."""

    images: NDArray[np.int64]
    """(r,) image rows, -1 for an image that the folder does not have."""
    values: Mapping[str, NDArray[Any]]
    """Field -> (r, ...)."""
    crops: NDArray[np.int64] | None = None
    """(r,) crop numbers; None: in the order of the files."""


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """The rows of one image, in the order of its crops."""

    values: Mapping[str, NDArray[Any]]
    """Field -> (M, ...)."""
    height: int
    width: int
    sizes: NDArray[np.int64]
    """(images, 2) heights and widths of all images, where a source keeps them."""


@dataclass(kw_only=True)
class Scattered(LabelSource):
    """A source of pieces. `read_piece(number)` raises Refused or RejectedInput."""

    source: Path
    images: ImageSource
    pieces: Sequence[Path]
    """A file per piece; one that is read in parts stands here several times."""
    read_piece: Callable[[int], Piece] | None
    most: int
    """Crops that an image may have."""
    finish: Callable[[ImageRows], ImageLabels]
    """Raises Refused."""
    num_crops: int | None = None
    """M that was asked for; None: as many as all images have."""
    needs_sizes: bool = False
    """Whether `finish` wants the sizes of other images."""
    folder: Path | None = None
    shapes: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    rows: int = 0
    """Rows of all pieces that were read."""
    _arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        # workers map the files themselves, and read no piece
        return {**self.__dict__, "_arrays": {}, "read_piece": None, "pieces": ()}

    def file_of(self, image: int) -> Path:
        """The source: no file is an image's own."""
        return self.source

    def prepare(self, scratch: Path | None, progress: Progress) -> None:
        """Read every piece; afterwards `bad` names those that cannot be used and `contents` has the M that is left."""
        assert self.read_piece is not None
        with storage_errors(scratch or Path(tempfile.gettempdir())):
            if scratch is not None:
                scratch.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix="labelstore-import-", dir=scratch))
        bad: list[BadFile] = []
        counts = np.zeros(len(self.images), np.int64)
        for number, path in enumerate(self.pieces):
            progress(number, len(self.pieces))
            try:
                with named(path):
                    self._add(self.read_piece(number), counts)
            except RejectedInput as error:
                bad.append(BadFile(file=str(path), reason=str(error).removeprefix(f"{path}: ")))
        for array in self._arrays.values():
            with storage_errors(self.folder):
                array.flush()  # type: ignore[attr-defined] # a memmap
        self.bad = (*self.bad, *bad)
        self._settle(counts)
        if self.needs_sizes:
            self._keep_sizes()

    def read(self, image: int, height: int, width: int) -> ImageLabels:
        """Labels of an image of this size. RejectedInput where it has fewer crops than M."""
        have = np.flatnonzero(self._array(HAVE)[image])
        m = self.contents.num_crops
        with named(self.source):
            if len(have) < m:
                raise Refused(f"has {len(have)} of {m} crops of this image")
            values = {
                name: np.array(self._array(name)[image, have[:m]])
                for name in self.shapes
                if name not in (HAVE, "size")
            }
            sizes = self._array("size") if self.needs_sizes else np.zeros((0, 2), np.int64)
            return self.finish(ImageRows(values=values, height=height, width=width, sizes=sizes))

    def close(self) -> None:
        """Remove the scratch folder."""
        self._arrays.clear()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _add(self, piece: Piece, counts: NDArray[np.int64]) -> None:
        images = piece.images
        shapes = {name: (value.dtype.str, value.shape[1:]) for name, value in piece.values.items()}
        if any(len(value) != len(images) for value in piece.values.values()):
            raise Refused("has another number of labels than of images")
        if not self.shapes:
            self._allocate(shapes)
        for name, (dtype, shape) in shapes.items():
            if self.shapes.get(name) != (dtype, shape):
                raise Refused(
                    f"has {name} of {dtype} {shape}, and the first file {self.shapes.get(name)}"
                )
        self.rows += len(images)
        known = np.flatnonzero(images >= 0)
        if len(images) and (images.max() >= len(self.images) or images.min() < -1):
            raise Refused(f"names image {images.max()}, and the folder has {len(self.images)}")
        rows = images[known]
        crops = _numbered(rows, counts) if piece.crops is None else piece.crops[known]
        if len(crops) and not (crops.min() >= 0 and crops.max() < self.most):
            raise Refused(f"has more than {self.most} crops of an image")
        have = self._array(HAVE)
        if have[rows, crops].any() or len(np.unique(rows * self.most + crops)) < len(rows):
            raise Refused("has a crop of an image twice")
        for name, value in piece.values.items():
            self._array(name)[rows, crops] = value[known]
        have[rows, crops] = True
        np.add.at(counts, rows, 1)

    def _allocate(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self.shapes = {**shapes, HAVE: ("|b1", ())}
        whole = (
            len(self.images)
            * self.most
            * sum(
                np.dtype(dtype).itemsize * int(np.prod(shape))
                for dtype, shape in self.shapes.values()
            )
        )
        assert self.folder is not None
        free = shutil.disk_usage(self.folder).free
        if whole > min(free, MAX_SCRATCH):
            raise UsageError(
                f"sorting these labels by image takes {whole / 1e9:.1f} GB in {self.folder.parent}, which has "
                f"{free / 1e9:.1f} GB free: give `scratch=DIR` of a larger disk"
            )
        for name in self.shapes:
            self._array(name, "w+")

    def _array(self, name: str, mode: Any = "r+") -> NDArray[Any]:  # noqa: ANN401 - NumPy's own literals
        if name not in self._arrays:
            assert self.folder is not None
            dtype, shape = self.shapes[name]
            leading = (len(self.images),) if name == "size" else (len(self.images), self.most)
            with storage_errors(self.folder / name):
                self._arrays[name] = np.memmap(
                    self.folder / name, dtype, mode, shape=(*leading, *shape)
                )
        return self._arrays[name]

    def _settle(self, counts: NDArray[np.int64]) -> None:
        there = counts[counts > 0]
        if not len(there):
            first = f" ({self.bad[0].file}: {self.bad[0].reason})" if self.bad else ""
            raise RejectedInput(
                f"{self.source}: holds no label of any image of {self.images.root}{first}"
            )
        m = self.num_crops or int(there.min())
        kept = m * int((counts >= m).sum())
        self.facts = {**self.facts, "rows": self.rows, "rows_left_out": self.rows - kept}
        if self.rows > kept:
            most_kept = max(
                range(1, int(there.max()) + 1), key=lambda n: n * int((counts >= n).sum())
            )
            self.facts = {
                **self.facts,
                "crops_of_an_image": [int(counts.min()), int(counts.max())],
                "num_crops_that_keeps_most": most_kept,
            }
        self.contents = replace(self.contents, num_crops=m)

    def _keep_sizes(self) -> None:
        self.shapes = {**self.shapes, "size": ("<i8", (2,))}
        sizes = self._array("size", "w+")
        for row, key in enumerate(self.images.keys):
            try:
                sizes[row] = image_size(self.images.file(key))
            except RejectedInput:
                sizes[row] = 0  # refused where it is needed


def _numbered(rows: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Crop numbers of rows that continue each image's crops."""
    order = np.argsort(rows, kind="stable")
    ranked = rows[order]
    starts = (
        np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(rows) else np.zeros(0, int)
    )
    lengths = np.diff(np.r_[starts, len(rows)])
    numbers = np.empty(len(rows), np.int64)
    numbers[order] = np.arange(len(rows)) - np.repeat(starts, lengths)
    return numbers + counts[rows]
