"""ImageNet's other validation labels and images: ReaL (Beyer et al. 2020) and ImageNetV2 (Recht et al. 2019).

Both number classes 0 to 999 in the order of ImageNet's ids (n01440764 first). Which output of a network is which class
follows from its class names where these are the ids, or the numbers themselves; other names must come in ImageNet's
order, as data sets with names for people have them. A network without names is taken to have that order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labelstore.errors import RejectedInput, UsageError
from labelstore.images import ImageSource, open_images
from trainer.config import TrainConfig
from trainer.evaluation import (
    Counts,
    Evaluation,
    Report,
    forward_all,
    output_of_class,
)

IMAGENET_CLASSES = 1000
MAX_REAL_BYTES = 256 * 1024**2


@dataclass(frozen=True, kw_only=True)
class RealEvaluation:
    """Hits among several right classes."""

    images: int
    """Images with at least one right class; the others do not count (Beyer et al. 2020)."""
    without_label: int
    top1: float
    """Percent of images whose largest logit is one of their right classes."""


def evaluate_real(
    model: nn.Module,
    folder: Path,
    real: Path,
    config: TrainConfig,
    *,
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> RealEvaluation:
    """ReaL accuracy on ImageNet's validation folder.

    `real` is real.json: a list of class lists in the order of the images' numbers (..._val_00000001.JPEG is the
    first), or a mapping from file names to class lists. RejectedInput for a file that is neither, or an image
    that it does not know, UsageError for class folders whose numbers cannot be told.
    """
    images, outputs, right = _matched_real(folder, real, config)
    paths = [images.file(key) for key in images.keys]
    hits = counted = 0
    for chosen, logits in forward_all(model, paths, config, device=device, report=report):
        best = logits.argmax(1).cpu().tolist()
        for output, classes in zip(best, right[chosen], strict=True):
            counted += bool(classes)
            hits += output in {int(outputs[c]) for c in classes}
    return RealEvaluation(
        images=counted, without_label=len(right) - counted, top1=100 * hits / max(counted, 1)
    )


def evaluate_numbered(
    model: nn.Module,
    folder: Path,
    config: TrainConfig,
    *,
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> Evaluation:
    """Top-1 and top-5 on folders whose names are class numbers, as ImageNetV2's 0 to 999.

    RejectedInput for a folder that is no number, UsageError for a class that the network does not have, and for
    class names whose numbers cannot be told.
    """
    images, outputs, classes = _matched_numbers(folder, config)
    counts = Counts(len(outputs))
    paths = [images.file(key) for key in images.keys]
    for chosen, logits in forward_all(model, paths, config, device=device, report=report):
        counts.add(logits, classes[chosen])
    return counts.result()


def check_real(folder: Path, real: Path, config: TrainConfig) -> None:
    """Read and match everything that `evaluate_real` would, and refuse what it refuses."""
    _matched_real(folder, real, config)


def check_numbered(folder: Path, config: TrainConfig) -> None:
    """Read and match everything that `evaluate_numbered` would, and refuse what it refuses."""
    _matched_numbers(folder, config)


def _matched_real(
    folder: Path, real: Path, config: TrainConfig
) -> tuple[ImageSource, NDArray[np.int64], list[list[int]]]:
    """N images, the network's output of each class number, and the right class numbers of each image."""
    images = open_images(folder, keys_only=True)
    outputs = output_of_class(images, config)[_by_number(images.classes)]
    labels = _read_real(real, len(outputs))
    return images, outputs, [_right_classes(key, labels, real) for key in images.keys]


def _matched_numbers(
    folder: Path, config: TrainConfig
) -> tuple[ImageSource, NDArray[np.int64], Tensor]:
    """N images, the network's output of each class number, and of each image (N,)."""
    images = open_images(folder, keys_only=True)
    wrong = [name for name in images.classes if re.fullmatch(r"\d{1,6}", name) is None]
    if wrong:
        raise RejectedInput(
            f"{folder} has a folder {wrong[0]!r}, which is no class number: give one of ImageNetV2's folders, or "
            "`val` for folders with names"
        )
    numbers = np.array([int(name) for name in images.classes])
    outputs = outputs_in_order(config, int(numbers.max()) + 1)
    if numbers.max() >= len(outputs):
        raise UsageError(
            f"{folder} has class {numbers.max()}, the network has outputs 0-{len(outputs) - 1}: "
            "evaluate a network with ImageNet's classes"
        )
    return images, outputs, torch.from_numpy(outputs[numbers[images.class_ids]])


def outputs_in_order(config: TrainConfig, at_least: int) -> NDArray[np.int64]:
    """Network output of each of ImageNet's class numbers; as they come for a network without names."""
    if config.class_names:
        return _by_number(config.class_names)
    return np.arange(config.num_classes or at_least)


def _by_number(names: Sequence[str]) -> NDArray[np.int64]:
    """Place among the names of each class number; UsageError for names that do not say."""
    places = range(len(names))
    if all(re.fullmatch(r"n\d{8}", name) for name in names):
        return np.array(sorted(places, key=lambda place: names[place]), np.int64)
    if {str(place) for place in places} == set(names):
        return np.array(sorted(places, key=lambda place: int(names[place])), np.int64)
    # names for people that are sorted come from folders: ImageNet's order begins tench, goldfish, great white shark
    if len(names) == IMAGENET_CLASSES and list(names) != sorted(names):
        return np.arange(len(names))
    raise UsageError(
        f"class {names[0]!r}, one of {len(names)}: ReaL and ImageNetV2 number ImageNet's classes, which names like "
        "this one do not tell; use images in folders called n01440764 and so on, or 0 to 999"
    )


def _read_real(path: Path, num_classes: int) -> list[list[int]] | dict[str, list[int]]:
    try:
        if path.stat().st_size > MAX_REAL_BYTES:
            raise RejectedInput(f"{path} is larger than any real.json: give ReaL's own file")
        labels: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, RejectedInput):
            raise
        reason = str(error).splitlines()[0]
        raise RejectedInput(f"{path} cannot be read ({reason}): give ReaL's real.json") from error
    lists: Sequence[Any] = list(labels.values()) if isinstance(labels, Mapping) else labels
    fits = isinstance(lists, list) and all(
        isinstance(classes, list) and all(type(c) is int and 0 <= c < num_classes for c in classes)
        for classes in lists
    )
    if not fits:
        raise RejectedInput(
            f"{path} is no list of class lists with classes 0-{num_classes - 1}: give ReaL's real.json, and a "
            "validation folder with all of ImageNet's classes"
        )
    return labels  # type: ignore[no-any-return]


def _right_classes(
    key: str, labels: list[list[int]] | dict[str, list[int]], path: Path
) -> list[int]:
    name = key.rpartition("/")[2]
    if isinstance(labels, dict):
        if name not in labels:
            raise RejectedInput(f"{path} does not know {name}: give the file of these images")
        return labels[name]
    number = re.search(r"_(\d{1,9})\.\w+$", name)
    if number is None or not 1 <= int(number[1]) <= len(labels):
        raise RejectedInput(
            f"{key} does not end with a number of 1 to {len(labels)}, as ILSVRC2012_val_00000001.JPEG does: "
            f"{path} cannot be matched to it"
        )
    return labels[int(number[1]) - 1]
