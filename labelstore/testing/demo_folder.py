"""The demo's data set: an ImageFolder of digit pictures that a small network learns in minutes.

`teacher/`, `train/` and `val/` each hold one folder per class, digit_0 to digit_9. The images of `train/` are the
first of `teacher/`: the teacher saw those of the students and more. `manifest.csv` lists what each is made of.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from labelstore.arrays.durable import check_new_place
from labelstore.errors import ConflictError, StorageError, UsageError
from labelstore.testing.digit_pictures import (
    NUM_CLASSES,
    PHOTOGRAPHS,
    SIDE,
    Picture,
    Split,
    digits,
    photographs,
    plan,
    render,
)

SETTINGS = "demo_images.json"
MANIFEST = "manifest.csv"
VERSION = 1
COLUMNS = ("key", "class", "digit", "fragments", "photograph", "left", "right")
# Progress is reported, and an interrupt noticed, between batches
BATCH = 64
SMALLEST_SIDE, LARGEST_SIDE = 32, 2048


@dataclass(frozen=True, kw_only=True)
class DemoImages:
    """What was asked for, and how much of it was not there yet."""

    folder: Path
    teacher: int
    """Images in teacher/."""
    train: int
    """Images in train/, all of them in teacher/ too."""
    val: int
    """Images in val/."""
    written: int
    """Images written by this call: 0 where the folder was complete."""

    def __str__(self) -> str:
        counts = f"{self.teacher:,} teacher images, {self.train:,} train (also in teacher/), {self.val:,} val"
        if not self.written:
            return f"{self.folder} is complete: {counts}"
        return f"{self.folder}: {counts}; {self.written:,} files written"


def make_demo_images(
    folder: Path,
    *,
    seed: int = 0,
    teacher: int = 4000,
    train: int = 1000,
    val: int = 1000,
    sides: tuple[int, int] = SIDE,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> DemoImages:
    """Write the data set for `seed`, the same files for any number of `workers` (threads; by default all cores).

    Heights and widths lie within `sides`, in pixels.
    `progress` is called with images written so far and in total. A complete folder is left as it is, an
    interrupted one is completed. Raises ConflictError for a folder that holds anything else, UsageError for
    impossible counts, inside a store, or where scikit-learn or scikit-image is missing, StorageError where the
    disk refuses. `dry_run` refuses the same and writes nothing.
    """
    if not NUM_CLASSES <= train <= teacher or val < NUM_CLASSES or seed < 0:
        raise UsageError(
            f"seed {seed}, {teacher} teacher, {train} train and {val} val images: give a seed of at least 0, "
            f"at least {NUM_CLASSES} each, and no more for train than for teacher, which holds them too"
        )
    if not SMALLEST_SIDE <= sides[0] <= sides[1] <= LARGEST_SIDE:
        raise UsageError(
            f"sides {sides[0]} to {sides[1]} px: give the shortest and the longest side of a picture, from "
            f"{SMALLEST_SIDE} to {LARGEST_SIDE}"
        )
    check_new_place(folder)
    settings: dict[str, Any] = {
        "version": VERSION,
        "seed": seed,
        "teacher": teacher,
        "train": train,
        "val": val,
    }
    if sides != SIDE:  # folders of before have no sides in their note
        settings["sides"] = list(sides)
    draw = partial(plan, seed, sides=sides)
    try:
        is_claimed = _is_claimed(folder, settings)
        if dry_run:
            return DemoImages(folder=folder, teacher=teacher, train=train, val=val, written=0)
        if not is_claimed:
            folder.mkdir(parents=True, exist_ok=True)
            _write_whole(folder / SETTINGS, (json.dumps(settings) + "\n").encode())
        written = _write_missing(folder, draw, (teacher, train, val), progress, workers)
        if written or not (folder / MANIFEST).exists():
            _write_whole(folder / MANIFEST, _manifest(draw, teacher, train, val))
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write {error.filename or folder}: {error.strerror}") from error
    return DemoImages(folder=folder, teacher=teacher, train=train, val=val, written=written)


def _is_claimed(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder notes these settings; ConflictError for one with other settings or other content."""
    note = folder / SETTINGS
    if not note.exists():
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise ConflictError(
                f"{folder} is not empty and holds no demo images: give another folder"
            )
        return False
    try:
        found = json.loads(note.read_bytes())
    except ValueError:
        found = None
    if found != settings:
        raise ConflictError(
            f"{folder} holds demo images with {found}, asked for {settings}: give another folder or remove it"
        )
    return True


def _write_missing(
    folder: Path,
    draw: Callable[[Split, int], Picture],
    counts: tuple[int, int, int],
    progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> int:
    """Write every image that is not there; returns how many."""
    there = {
        str(path.relative_to(folder).as_posix())
        for name in ("teacher", "train", "val")
        for path in (folder / name).glob("*/*.jpg")
    }
    keys_of: dict[tuple[Split, int], list[str]] = {}
    for key, split, number in _files(*counts):
        if key not in there:
            keys_of.setdefault((split, number), []).append(key)
    if not keys_of:
        return 0
    for name in ("teacher", "train", "val"):
        for class_id in range(NUM_CLASSES):
            (folder / name / f"digit_{class_id}").mkdir(parents=True, exist_ok=True)
    # Loaded here, not by whichever thread comes first, and not once per thread
    digits(), photographs()

    def write(entry: tuple[tuple[Split, int], list[str]]) -> int:
        (split, number), keys = entry
        data = render(draw(split, number))
        for key in keys:
            _write_whole(folder / key, data)
        return len(keys)

    pending, total, written = list(keys_of.items()), sum(map(len, keys_of.values())), 0
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for start in range(0, len(pending), BATCH):
            written += sum(pool.map(write, pending[start : start + BATCH]))
            if progress is not None:
                progress(written, total)
    return written


def _files(teacher: int, train: int, val: int) -> Iterator[tuple[str, Split, int]]:
    """Key, split and number of every image of the folder."""
    yield from ((_key("teacher", number), "train", number) for number in range(teacher))
    yield from ((_key("train", number), "train", number) for number in range(train))
    yield from ((_key("val", number), "val", number) for number in range(val))


def _key(name: str, number: int) -> str:
    origin = "v" if name == "val" else "t"
    return f"{name}/digit_{number % NUM_CLASSES}/{origin}{number:06d}.jpg"


def _manifest(draw: Callable[[Split, int], Picture], teacher: int, train: int, val: int) -> bytes:
    """CSV with one row per image: its key, class, digit rows and part of a photograph (shares of its width)."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(
        _row(key, draw(split, number)) for key, split, number in _files(teacher, train, val)
    )
    return file.getvalue().encode()


def _row(key: str, picture: Picture) -> tuple[str | int, ...]:
    return (
        key,
        picture.class_id,
        picture.digit.digit,
        " ".join(str(fragment.digit) for fragment in picture.fragments),
        PHOTOGRAPHS[picture.photograph],
        f"{picture.box[0]:.4f}",
        f"{picture.box[2]:.4f}",
    )


def _write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename: a file that is there is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
