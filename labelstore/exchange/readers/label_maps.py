"""Label maps of ReLabel and TokenLabeling: one torch.save tensor (2, K, rows, columns) per image.

    relabel         SOURCE/CLASS/NAME.pt  float32 (2, 5, 15, 15): [0] outputs before softmax, [1] classes, as floats
    tokenlabeling   SOURCE/CLASS/NAME.pt  float16 (2, 5, 18, 18), the same order

The teacher saw the whole image, squashed to a square. Which of the last two axes runs down the image is written
nowhere for ReLabel, and both projects' own decoders pool the region mirrored about the diagonal. So both orders
are tried: in the right one, random crops are given their image's class with the higher probability. Maps are kept
rows first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import MapTopK
from labelstore.codecs.labelmap import MAX_CELLS, LabelMap
from labelstore.cropping.crop_plan import CropPlan
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.labels import Contents, ImageLabels
from labelstore.exchange.readers.label_values import class_ids, finite, refuse_twice
from labelstore.exchange.readers.sources import (
    ImageFiles,
    files_without_image,
    first_contents,
    label_folder,
    refuse_shared,
)
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.inert_values import array_of
from labelstore.untrusted.refusal import Refused, named
from labelstore.untrusted.torch_archive import load_torch

ENDING = ".pt"
MEASURED_IMAGES = 200
MEASURED_CROPS = 20
ORDERS = ("rows-first", "columns-first")


def label_file(key: str) -> str:
    """Where the map of an image is.

    >>> label_file("n01440764/n01440764_18.JPEG")
    'n01440764/n01440764_18.pt'
    """
    return str(PurePosixPath(key).with_suffix(ENDING))


def _open(source: Path, images: ImageSource, stated: Stated, format_name: str) -> ImageFiles:
    if stated.axis_order not in (None, *ORDERS):
        raise UsageError(f"`axis_order={stated.axis_order}`: label maps are {' or '.join(ORDERS)}")
    names = [label_file(key) for key in images.keys]
    folder = label_folder(source, images, names, format_name)
    refuse_shared(names, images)
    num_classes = stated.classes(format_name)
    contents = first_contents(folder, names, _look)
    assert contents.cells is not None
    parse = MapFile(shape=contents.cells, k=contents.k or 1, num_classes=num_classes, turned=False)
    facts: dict[str, Any] = {}
    order = stated.axis_order
    if order is None:
        if contents.cells[0] != contents.cells[1]:
            order = "rows-first"  # a map of a square with sides of its own says it itself
        else:
            means = measured(folder, names, images, parse)
            order = ORDERS[int(means[1] > means[0])]
            facts["ground_truth_probability"] = dict(zip(ORDERS, means, strict=True))
    facts["axis_order"] = order
    turned = order == "columns-first"
    if turned:
        contents = replace(contents, cells=(contents.cells[1], contents.cells[0]))
    return ImageFiles(
        folder=folder,
        names=names,
        contents=contents,
        parse=replace(parse, turned=turned),
        unmatched=files_without_image(folder, names, ENDING),
        facts=facts,
    )


open_relabel = partial(_open, format_name="relabel")
open_tokenlabeling = partial(_open, format_name="tokenlabeling")


@dataclass(frozen=True, kw_only=True)
class MapFile:
    """Reads one map."""

    shape: tuple[int, int]
    """Last two axes of the file's tensor."""
    k: int
    num_classes: int
    turned: bool
    """Whether the last axis runs down the image."""

    def __call__(self, path: Path, image: int, height: int, width: int) -> ImageLabels:
        """The map, rows first; Refused for anything else than the source's other files hold."""
        values = _tensor(path)
        if values.shape != (2, self.k, *self.shape):
            raise Refused(
                f"holds a map of shape {values.shape}, and the other files {(2, self.k, *self.shape)}"
            )
        if self.turned:
            values = values.swapaxes(2, 3)
        cells = values.transpose(0, 2, 3, 1)
        logits = finite(cells[0], "outputs")
        ids = class_ids(np.ascontiguousarray(cells[1]), self.num_classes)
        refuse_twice(ids)
        if (logits[..., 1:] > logits[..., :-1]).any():
            order = np.argsort(-logits, axis=-1, kind="stable")
            logits, ids = np.take_along_axis(logits, order, -1), np.take_along_axis(ids, order, -1)
        return ImageLabels(labels=MapTopK(class_ids=ids[None], logits=logits[None]))


def measured(
    folder: Path, names: Sequence[str], images: ImageSource, parse: MapFile
) -> tuple[float, float]:
    """Mean probability of the images' classes over random crops, with rows first and with columns first.

    UsageError where the folder's classes are not the teacher's, RejectedInput where no map can be read.
    """
    if len(images.classes) != parse.num_classes:
        raise UsageError(
            f"`axis_order` is needed: the order of a map's axes is measured against the images' classes, and these are "
            f"{len(images.classes)} of {parse.num_classes}; choose {' or '.join(ORDERS)}"
        )
    step = max(1, len(names) // MEASURED_IMAGES)
    maps: list[tuple[MapTopK, int]] = []
    for row in range(0, len(names), step):
        try:
            with named(folder / names[row]):
                labels = parse(folder / names[row], row, 0, 0).labels
                assert isinstance(labels, MapTopK)
                maps.append((labels, row))
        except RejectedInput:
            continue  # named when it is read
    if not maps:
        raise RejectedInput(f"{folder}: none of {len(names)} maps can be read")
    rows = [row for _, row in maps]
    ids = np.concatenate([labels.class_ids for labels, _ in maps])
    logits = np.concatenate([labels.logits for labels, _ in maps])
    # the crops of no plan: squares of any place in a square image
    side = 10_000
    boxes, _ = CropPlan(ratio=(1 / 2, 2)).crops_of_images(
        [images.keys[row] for row in rows],
        np.full((len(rows), 2), side),
        np.broadcast_to(np.arange(MEASURED_CROPS), (len(rows), MEASURED_CROPS)),
    )
    shares = boxes.astype(np.float32) / np.float32(side)
    truth = images.class_ids[rows]
    return (
        _mean(ids, logits, shares, truth, parse),
        _mean(ids.swapaxes(1, 2), logits.swapaxes(1, 2), shares, truth, parse),
    )


def _mean(
    ids: NDArray[Any],
    logits: NDArray[np.float32],
    boxes: NDArray[np.float32],
    truth: NDArray[np.int64],
    parse: MapFile,
) -> float:
    _, height, width, k = ids.shape
    codec = LabelMap(k=k, dtype="float32", height=height, width=width)
    arrays = codec.encode(MapTopK(class_ids=ids, logits=logits), parse.num_classes)
    total, count = 0.0, 0
    for first in range(0, len(ids), 16):
        part = slice(first, first + 16)
        labels = codec.decode(
            {
                **{name: array[part] for name, array in arrays.items()},
                "box": boxes[part],
            },
            parse.num_classes,
        )
        of_truth = labels.probability_of(truth[part, None])
        total += float(of_truth.sum(dtype=np.float64))
        count += of_truth.size
    return total / count


def _tensor(path: Path) -> NDArray[Any]:
    values = array_of(load_torch(path), "its content")
    if values.ndim != 4 or values.shape[0] != 2 or values.dtype.kind != "f":
        raise Refused(
            f"holds a {values.dtype} tensor of shape {values.shape}, not (2, K, rows, columns)"
        )
    if not (1 <= values.shape[1] <= 1000 and all(1 <= n <= MAX_CELLS for n in values.shape[2:])):
        raise Refused(f"holds a map of shape {values.shape}")
    return values


def _look(path: Path) -> Contents:
    values = _tensor(path)
    return Contents(
        kind="map",
        num_crops=1,
        k=values.shape[1],
        dtype=str(values.dtype),
        cells=(values.shape[2], values.shape[3]),
    )
