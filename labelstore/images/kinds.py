"""Which kind of images a path means: a folder of class folders, a list, tar shards, or a data set of Hugging Face."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Literal

from labelstore.errors import RejectedInput, StorageError, check_utf8
from labelstore.images.hugging_face import SPLITS_FILE, is_saved, read_saved, splits
from labelstore.images.image_source import ImageFile, ImageSource, scan_folder
from labelstore.images.listed import SUFFIXES, read_list
from labelstore.images.tar_shards import read_shards

MAX_SHARDS = 100_000
BRACES = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")


def open_images(images: str | Path | ImageSource, *, keys_only: bool = False) -> ImageSource:
    """The images at a path, whatever they lie in; what is open already is given back.

    `DIR` with one subfolder per class; `LIST.csv` or `LIST.parquet` with columns `path` and `class`, `LIST.csv:DIR`
    where paths are relative to another folder; `FILE.tar`, `shards-{000..009}.tar`, or a folder of tar files; a
    folder that `datasets` saved. `keys_only` skips sizes and times where they cost something.
    Raises RejectedInput for what is none of these, and as each kind does.
    """
    if isinstance(images, ImageSource):
        return images
    text, path = os.fspath(images), Path(images)
    check_utf8(text)
    if path.is_dir():
        return _open_folder(path, keys_only=keys_only)
    if _is_pattern(text):
        return read_shards(path, expand(text))
    if path.suffix.lower() == ".tar":
        return read_shards(path, [path])
    listed, base = split_list(path)
    if listed.suffix.lower() in SUFFIXES and listed.is_file():
        return read_list(listed, base, keys_only=keys_only)
    raise RejectedInput(
        f"{listed} is not a folder{', list or tar file' if listed.exists() else ', nothing is there'}: give a folder "
        "with one subfolder per class, a list (.csv, .parquet) of path and class, tar shards, or a data set that "
        "Hugging Face's `datasets` saved"
    )


def _is_pattern(text: str) -> bool:
    """Whether `{000..009}` in a path counts shards: not where a folder or file really is called so."""
    return BRACES.search(text) is not None and not split_list(Path(text))[0].exists()


def are_there(images: str | Path) -> bool:
    """Whether something is where these images were."""
    text = os.fspath(images)
    first = expand(text)[0] if _is_pattern(text) else split_list(Path(text))[0]
    return first.exists()


def file_finder(images: str | Path | ImageSource) -> Callable[[str], ImageFile]:
    """Where an image is, by its key; for a few images of a folder, which is not listed for that."""
    if not isinstance(images, ImageSource):
        path = Path(images)
        if path.is_dir() and _kind_of_folder(path) is None:
            # a bound method can be pickled for a worker process
            return path.joinpath
    return open_images(images).file


def split_list(path: Path) -> tuple[Path, Path | None]:
    """A list and the folder named behind it, `list.csv:DIR`; None where there is none.

    >>> split_list(Path("a.csv:/data"))[1].name, split_list(Path("a.csv"))[1]
    ('data', None)
    """
    for suffix in SUFFIXES:
        at = str(path).lower().find(f"{suffix}:")
        if at >= 0 and not path.exists():
            end = at + len(suffix)
            return Path(str(path)[:end]), Path(str(path)[end + 1 :])
    return path, None


def expand(text: str) -> list[Path]:
    """The paths that `{000..009}` stands for, as a shell has them; several multiply.

    >>> [str(path) for path in expand("s-{08..10}.tar")]
    ['s-08.tar', 's-09.tar', 's-10.tar']
    """
    parts = BRACES.split(text)
    ranges: list[list[str]] = []
    count = 1
    for low, high in zip(parts[1::3], parts[2::3], strict=True):
        first, last = int(low), int(high)
        count *= last - first + 1
        if first > last or count > MAX_SHARDS:
            raise RejectedInput(
                f"{text}: {{{low}..{high}}} must count upwards, to at most {MAX_SHARDS:,} shards in all"
            )
        ranges.append([f"{number:0{len(low)}d}" for number in range(first, last + 1)])
    between = parts[0::3]
    return [
        Path(
            between[0]
            + "".join(number + after for number, after in zip(numbers, between[1:], strict=True))
        )
        for numbers in product(*ranges)
    ]


def _open_folder(path: Path, *, keys_only: bool) -> ImageSource:
    kind = _kind_of_folder(path)
    if kind == "datasets":
        return read_saved(path)
    if kind is None:
        return scan_folder(path, keys_only=keys_only)
    return read_shards(path, kind, beside=sum(1 for _ in path.iterdir()) - len(kind))


def _kind_of_folder(path: Path) -> Literal["datasets"] | list[Path] | None:
    """Tell what a folder is: a saved data set, its tar files, or None for a folder of class folders."""
    if is_saved(path):
        return "datasets"
    if (path / SPLITS_FILE).is_file():
        names = ", ".join(str(path / name) for name in splits(path)) or "none is there"
        raise RejectedInput(f"{path} is a data set of several splits: give one of them ({names})")
    tars: list[Path] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    return None
                if entry.name.lower().endswith(".tar"):
                    tars.append(path / entry.name)
    except OSError as error:
        raise StorageError(f"cannot list {path}: {error.strerror}") from error
    return sorted(tars) or None
