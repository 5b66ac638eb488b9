"""How far one call walks through the code: transactions of a `create`, turns from file to file, label decodes.

    python -m benchmarks.walks [--images 16] [--crops 8] [--json]

Counts, not times, so that they are the same on every machine. A *transaction* is a `begin` of SQLAlchemy. A *turn* is
a call of a function of `labelstore`, `trainer` or `cli` that is in another file than the one called before it in the
same thread; all threads together (`sys.setprofile`). A *label decode* is how often `calibrate` reads a chunk column
of the labels' probabilities.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import Connection, Engine, event
from torch import nn

import labelstore
from labelstore import GenerationOptions, MarginalSmoothing, PlanOptions, RegionThresholds
from labelstore.catalogue.records import TeacherRow
from labelstore.labelling.label_images import label_images
from labelstore.store.group import Group
from labelstore.teachers.teacher import Teacher

ROOT = Path(labelstore.__file__).parents[1]
PACKAGES = tuple(f"{ROOT / name}/" for name in ("labelstore", "trainer", "cli"))
CLASSES = 8
SIDE = 32


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=16)
    options.add_argument("--crops", type=int, default=8)
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.images, args.crops)
    if args.json:
        print(json.dumps(result, separators=(",", ":")))
        return
    for name, count in result.items():
        print(f"{name:24s}{count:8,}")


def measure(folder: Path, num_images: int, num_crops: int) -> dict[str, int]:
    """The counts of a `create` of so many images, with one crop each for transactions, and of a `calibrate`."""
    images, teacher = pictures(folder / "images", num_images), small_teacher()

    def create(name: str, crops: int) -> None:
        label_images(
            folder / name,
            images=images,
            teacher=teacher,
            codec=MarginalSmoothing(k=5),
            plan=PlanOptions(num_crops=crops),
            generation=GenerationOptions(device="cpu", workers=2),
        )

    create("warm", num_crops)  # what is imported or built once is no part of the walk
    with transactions() as begun:
        create("one-crop", 1)
    with calls() as called:
        create("many-crops", num_crops)
    with (
        labelstore.open(folder / "many-crops") as store,
        decodes(store.label_set().name) as decoded,
    ):
        labelstore.calibrate(store.label_set(), RegionThresholds(), name="mask")
    return {
        "images": num_images,
        "crops": num_crops,
        "transactions": len(begun),
        "files": len({file for walk in called.values() for file, _ in walk}),
        "functions": len({call for walk in called.values() for call in walk}),
        "turns": sum(map(turns, called.values())),
        "label_decodes": max(decoded.values()),
    }


def pictures(root: Path, count: int) -> Path:
    """An image folder of so many small JPEGs, in folders of classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = root / f"class{number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(path)
    return root


def small_teacher() -> Teacher:
    """An untrained linear network; what it says plays no part."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, CLASSES))
    return Teacher(
        module=network.eval().requires_grad_(False),
        row=TeacherRow(
            name="linear",
            source="walks:linear",
            architecture="linear",
            digest="0" * 64,
            num_classes=CLASSES,
            input_size=SIDE,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            interpolation="bilinear",
            crop_pct=0.875,
        ),
    )


@contextmanager
def transactions() -> Iterator[list[str]]:
    """The transactions that begin meanwhile, by the options of their connection."""
    begun: list[str] = []

    def begin(connection: Connection) -> None:
        begun.append(str(dict(connection.get_execution_options())))

    event.listen(Engine, "begin", begin)
    try:
        yield begun
    finally:
        event.remove(Engine, "begin", begin)


@contextmanager
def calls() -> Iterator[dict[int, list[tuple[str, str]]]]:
    """Per thread the (file, function) of every call into our packages, in order."""
    found: dict[int, list[tuple[str, str]]] = {}

    def profile(frame: FrameType, what: str, value: object) -> None:
        code = frame.f_code
        if what == "call" and code.co_filename.startswith(PACKAGES):
            walk = found.setdefault(threading.get_ident(), [])
            walk.append((code.co_filename, code.co_qualname))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def turns(walk: list[tuple[str, str]]) -> int:
    """How often one call is in another file than the call before it."""
    return sum(before != after for (before, _), (after, _) in pairwise(walk))


@contextmanager
def decodes(label_set: str) -> Iterator[Counter[tuple[Any, ...]]]:
    """How often each chunk column of each field of a label set's shards is read and decoded."""
    found: Counter[tuple[Any, ...]] = Counter()
    read: Callable[..., dict[str, NDArray[Any]]] = Group._read
    each: Callable[..., Iterator[dict[str, NDArray[Any]]]] = Group.columns

    def counted(self: Group, row: Any, columns: range, fields: Any, **options: Any) -> Any:
        if self.name == f"labels/{label_set}":
            found.update((row.block, row.crop_shard, c, f) for c in columns for f in fields)
        return read(self, row, columns, fields, **options)

    def counted_each(self: Group, block: int, columns: range | None, fields: Any) -> Any:
        if self.name == f"labels/{label_set}":
            for shard, inside in self.layout.split(columns):
                found.update((block, shard, c, f) for c in inside for f in fields)
        return each(self, block, columns, fields)

    Group._read, Group.columns = counted, counted_each  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Group._read, Group.columns = read, each  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
