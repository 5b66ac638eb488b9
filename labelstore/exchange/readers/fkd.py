"""FKD's label files: one per image, `SAVE/imagenet/train/CLASS/NAME.tar`, a zip of torch.save in spite of its name.

A list of three arrays (or tensors), float32, or float16 where the generator ran with `--use_fp16`:

    boxes   (M, 4)      top / H, left / W, height / H, width / W
    flips   (M,)        bool
    labels  (M,)        the class, int64, or float16 with `--use_fp16`             hard, FKD Eq. 3
            (M, 2)      class and probability                                      smoothing, Eq. 4
            (M, 2, K)   [:, 0] classes, [:, 1] probabilities, sorted descending    ms and mr, Eq. 5-7
            (M, C)      all probabilities                                          full

NAME is the image's up to the first dot. Where M is no multiple of the generator's segments, there are fewer labels
than boxes: the last boxes have none. Files of ms and mr are the same, the temperature, C and the teacher are nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import TopK
from labelstore.exchange.labels import Contents, ImageLabels
from labelstore.exchange.readers.boxes import BoxShares, box_shares
from labelstore.exchange.readers.label_values import (
    class_ids,
    kept_probabilities,
    truths,
    whole_probabilities,
)
from labelstore.exchange.readers.sources import (
    ImageFiles,
    files_without_image,
    first_contents,
    label_folder,
    refuse_shared,
)
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.inert_values import array_of, kind_of
from labelstore.untrusted.refusal import Refused
from labelstore.untrusted.torch_archive import load_torch

ENDING = ".tar"


def label_file(key: str) -> str:
    """Where FKD keeps the labels of an image, relative to the folder that stands for the image folder.

    >>> label_file("n01440764/n01440764_18.JPEG")
    'n01440764/n01440764_18.tar'
    """
    path = PurePosixPath(key)
    return str(path.with_name(path.name.split(".")[0] + ENDING))


def open_fkd(source: Path, images: ImageSource, stated: Stated) -> ImageFiles:
    """FKD's labels for the images of a folder."""
    boxes = box_shares(stated.axis_order, round_boxes=stated.round_boxes)
    names = [label_file(key) for key in images.keys]
    folder = label_folder(source, images, names, "fkd")
    refuse_shared(names, images)
    compression = stated.need(
        "compression", "fkd files do not say what they are: ms, mr, hard, smoothing or full"
    )
    first = first_contents(folder, names, lambda path: _look(path, compression))
    parse = FkdFile(
        contents=replace(first, num_crops=stated.crops(first.num_crops)),
        in_file=first.num_crops,
        num_classes=first.num_classes or stated.classes("fkd"),
        boxes=boxes,
    )
    return ImageFiles(
        folder=folder,
        names=names,
        contents=parse.contents,
        parse=parse,
        parse_many=parse.many,
        unmatched=files_without_image(folder, names, ENDING),
        facts={"crops_in_files": first.num_crops, "dtype": first.dtype},
    )


@dataclass(frozen=True, kw_only=True)
class FkdFile:
    """Reads one label file, as it must be in this source."""

    contents: Contents
    in_file: int
    """Crops with labels in each file, of which M are taken."""
    num_classes: int
    boxes: BoxShares

    def __call__(self, path: Path, image: int, height: int, width: int) -> ImageLabels:
        """Labels of an image of this size; Refused for anything else than the source's other files hold."""
        shares, flips, labels = read_fkd(path)
        if len(labels) != self.in_file:
            raise Refused(f"holds {len(labels)} crops, and the other files {self.in_file}")
        m = self.contents.num_crops
        return ImageLabels(
            labels=self._labels(labels[:m]),
            boxes=self.boxes.pixels(shares[:m], height, width),
            flips=truths(flips[:m], "flips"),
        )

    def many(self, paths: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> list[ImageLabels]:
        """The same of several files, checked together: half of the time goes into calls of NumPy, not into numbers.

        Raises Refused without a message where any of them is invalid.
        """
        m = self.contents.num_crops
        files = [read_fkd(path) for path in paths]
        kinds = {(*(array.dtype for array in file), file[2].shape) for file in files}
        if len(kinds) != 1 or len(files[0][2]) != self.in_file:
            raise Refused("differ")
        shares, flips, values = (
            np.concatenate([file[at][:m] for file in files]) for at in range(3)
        )
        labels = self._labels(values)
        boxes = self.boxes.pixels_of_images(shares, np.repeat(np.array(sizes, np.int64), m, axis=0))
        mirrored = truths(flips, "flips")
        parts = [slice(first, first + m) for first in range(0, len(values), m)]
        return [
            ImageLabels(labels=_part(labels, part), boxes=boxes[part], flips=mirrored[part])
            for part in parts
        ]

    def _labels(self, values: NDArray[Any]) -> TopK | NDArray[np.float32]:
        if self.contents.kind == "probabilities":
            if values.shape[1:] != (self.num_classes,):
                raise Refused(
                    f"holds {values.shape[1:]} numbers per crop, and the other files ({self.num_classes},)"
                )
            return whole_probabilities(values)
        if values.ndim == 1 and self.contents.k == 1:
            ids = class_ids(values, self.num_classes)[:, None]
            ones = np.ones(ids.shape, np.float32)
            return TopK(class_ids=ids, probs=ones, tail=np.zeros(len(ids), np.float32))
        pairs = values[:, :, None] if values.ndim == 2 else values
        if pairs.ndim != 3 or pairs.shape[1:] != (2, self.contents.k):
            raise Refused(
                f"holds labels of shape {values.shape}, and the other files K={self.contents.k}"
            )
        if pairs.dtype.kind != "f":
            raise Refused(f"holds probabilities of dtype {pairs.dtype}")
        return kept_probabilities(class_ids(pairs[:, 0], self.num_classes), pairs[:, 1])


def _part(labels: TopK | NDArray[np.float32], crops: slice) -> TopK | NDArray[np.float32]:
    if not isinstance(labels, TopK):
        return labels[crops]
    return TopK(
        class_ids=labels.class_ids[crops], probs=labels.probs[crops], tail=labels.tail[crops]
    )


def read_fkd(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Shares (M', 4), flips (M',) and labels (M, ...) of a file, M <= M'; Refused for anything else."""
    value = load_torch(path)
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        of = f" of {len(value)}" if isinstance(value, (list, tuple)) else ""
        raise Refused(f"holds {kind_of(value)}{of}, not a list of boxes, flips and labels")
    shares = array_of(value[0], "its first entry")
    flips = array_of(value[1], "its second entry")
    labels = array_of(value[2], "its third entry")
    if shares.ndim != 2 or shares.shape[1] != 4 or shares.dtype.kind != "f":
        raise Refused(
            f"holds boxes of dtype {shares.dtype} and shape {shares.shape}, not (crops, 4)"
        )
    if flips.shape != shares.shape[:1]:
        raise Refused(f"holds {len(shares)} boxes and flips of shape {flips.shape}")
    if not 1 <= labels.ndim <= 3 or not 1 <= len(labels) <= len(shares):
        raise Refused(f"holds {len(shares)} boxes and labels of shape {labels.shape}")
    return shares, flips, labels


def _look(path: Path, compression: str) -> Contents:
    _, _, labels = read_fkd(path)
    m, dtype = len(labels), str(labels.dtype)
    if labels.ndim == 1 and compression != "hard":
        raise Refused(
            f"holds one {labels.dtype} per crop, hard labels, which `compression={compression}` is not"
        )
    if labels.ndim == 2 and not (labels.shape[1] == 2 and compression in ("smoothing", "hard")):
        return Contents(kind="probabilities", num_crops=m, num_classes=labels.shape[1], dtype=dtype)
    if labels.ndim == 3 and (labels.shape[1] != 2 or labels.shape[2] < 1):
        raise Refused(f"holds labels of shape {labels.shape}, none of FKD's")
    k = labels.shape[2] if labels.ndim == 3 else 1
    return Contents(kind="kept", num_crops=m, k=k, dtype=dtype)
