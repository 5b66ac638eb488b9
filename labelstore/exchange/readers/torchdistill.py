"""torchdistill's cache of a teacher's outputs (up to 1.1.4): `SOURCE/LAST4/INDEX.pt`, one file per image.

A dictionary with `teacher_outputs`, float32 (C,) before softmax, or what stands for them in the run's configuration.
INDEX is the image's position in the data set of the run; it has at least four digits, LAST4 are its last. Neither the
order of the data set nor the crop that the teacher saw is kept: both must be stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelstore.exchange.labels import Contents, ImageLabels
from labelstore.exchange.readers.boxes import whole_image
from labelstore.exchange.readers.image_orders import (
    check_positions,
    files_of_positions,
    positions_of,
)
from labelstore.exchange.readers.label_values import finite
from labelstore.exchange.readers.sources import (
    ImageFiles,
    check_folder,
    files_without_image,
    first_contents,
)
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.inert_values import array_of, kind_of
from labelstore.untrusted.refusal import Refused
from labelstore.untrusted.torch_archive import load_torch

LOST = ("outputs of inner layers (extracted_outputs)", "which crop the teacher saw")


def cache_file(index: int) -> str:
    """Where the cache keeps an image.

    >>> cache_file(7), cache_file(1281166)
    ('0007/0007.pt', '1166/1281166.pt')
    """
    digits = f"{index:04d}"
    return f"{digits[-4:]}/{digits}.pt"


def open_torchdistill(source: Path, images: ImageSource, stated: Stated) -> ImageFiles:
    """torchdistill's labels, one crop per image."""
    stated.need(
        "whole_images",
        "torchdistill's cache does not say which crops the teacher saw; whole images are all it can mean",
    )
    check_folder(source, "torchdistill")
    order, chosen = positions_of(
        source,
        images,
        stated,
        lambda order: (),
        question="an image's INDEX is its position in the data set of the run",
    )
    names = files_of_positions(order, len(images), cache_file)
    contents = first_contents(source, names, _look)
    assert contents.num_classes is not None
    unmatched = files_without_image(source, [*names], ".pt")
    check_positions(
        [Path(name).name.removesuffix(".pt") for name in unmatched], source, images, order
    )
    return ImageFiles(
        folder=source,
        names=names,
        contents=contents,
        parse=_CacheFile(contents.num_classes),
        unmatched=unmatched,
        lost=LOST,
        facts=chosen.to_record(),
    )


@dataclass(frozen=True)
class _CacheFile:
    num_classes: int

    def __call__(self, path: Path, image: int, height: int, width: int) -> ImageLabels:
        outputs = _read(path)
        if len(outputs) != self.num_classes:
            raise Refused(f"holds {len(outputs)} outputs, and the other files {self.num_classes}")
        return ImageLabels(
            labels=outputs[None],
            boxes=whole_image(1, height, width),
            flips=np.zeros(1, bool),
        )


def _read(path: Path) -> NDArray[np.float32]:
    value = load_torch(path)
    if not isinstance(value, dict) or "teacher_outputs" not in value:
        raise Refused(f"holds {kind_of(value)} without teacher_outputs")
    outputs = finite(array_of(value["teacher_outputs"], "its teacher_outputs"), "outputs")
    if outputs.ndim == 2 and len(outputs) == 1:
        outputs = outputs[0]
    if outputs.ndim != 1:
        raise Refused(f"holds outputs of shape {outputs.shape}, not (classes,)")
    return outputs


def _look(path: Path) -> Contents:
    return Contents(kind="outputs", num_crops=1, num_classes=len(_read(path)), dtype="float32")
