"""ml-dr's reinforced data sets: `SOURCE/INDEX.pth.tar` per image, and `config.pth.tar`, which says what was done.

A file is (INDEX, samples); INDEX is the image's position in the data set, which is torchvision's ImageFolder for the
configuration's `dataset: imagenet` and has an order of its own for others (Food-101's is that of `train.json`). A
sample is {"params": P, "prob": (probabilities, classes)} with the K largest, unsorted. P lists, in a fixed order, the
parameters of the transformations that the configuration enables:

    [partner or None,]  resize, random_crop, random_resized_crop, random_horizontal_flip, rand_augment, random_erase
    [mixup, cutmix]     the first entry and these only where one of the two is enabled

With a partner, every parameter but the last two is [mine, partner's]. Where both are enabled (`mixing.yaml`), a crop
may be blended by mixup and then cut into by cutmix, both with the same crop of the same partner. A crop is (top, left,
height, width) in pixels of the image as it is on disk, unless it was resized before. Probabilities are a mean over an
ensemble, at T = 1.

Where the order is not known, boxes tell: every box of a file lies inside its image. Positions are compared in runs of
neighbours (`image_orders`), so that a shuffle within a class is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.labels import Contents, ImageLabels
from labelstore.exchange.readers.boxes import (
    mix_box,
    pixel_box,
    pixel_boxes,
    pixel_boxes_fit,
)
from labelstore.exchange.readers.image_orders import (
    MEANINGS,
    Evidence,
    Order,
    check_positions,
    files_of_positions,
    positions_of,
    weigh,
)
from labelstore.exchange.readers.label_values import class_ids, kept_probabilities
from labelstore.exchange.readers.sources import (
    ImageFiles,
    check_folder,
    files_without_image,
    first_contents,
    size_or_none,
)
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.inert_values import InertArray, Value
from labelstore.untrusted.refusal import Refused, named, shown
from labelstore.untrusted.torch_archive import load_torch

ENDING = ".pth.tar"
CONFIG = "config.pth.tar"
ORDER = (
    "resize",
    "random_crop",
    "random_resized_crop",
    "random_horizontal_flip",
    "rand_augment",
    "random_erase",
    "mixup",
    "cutmix",
)
"""Transformations with parameters, in the order in which these are listed."""
MIXING = ("mixup", "cutmix")
AUGMENTING = ("rand_augment", "random_erase")
RUN, RUNS = 16, 16
"""Positions of a run of neighbours, and runs whose boxes are compared with images."""


def open_ml_dr(source: Path, images: ImageSource, stated: Stated) -> ImageFiles:
    """ml-dr's labels for the images of a folder, in the folder's order."""
    check_folder(source, "ml-dr")
    with named(source / CONFIG):
        config = _configuration(load_torch(source / CONFIG))
    enabled, num_samples = config.enabled, config.num_samples
    if any(name in enabled for name in AUGMENTING) and not stated.drop_augmentations:
        what = " and ".join(name for name in AUGMENTING if name in enabled)
        raise UsageError(
            f"{source}: its crops were augmented further ({what}), which a store cannot keep: "
            "`drop_augmentations` imports the labels without"
        )
    num_crops, num_classes = stated.crops(num_samples), stated.classes("ml-dr")
    order, chosen = positions_of(
        source,
        images,
        stated,
        _Boxes(source, config, images).evidence,
        question="INDEX is a position in the data set that was reinforced",
        names=("folder",) if config.dataset == "imagenet" else tuple(MEANINGS),
        complete=config.dataset == "imagenet",
    )
    names = files_of_positions(order, len(images), lambda position: f"{position}{ENDING}")
    mixed = any(name in enabled for name in MIXING)
    k = first_contents(source, names, _look).k
    unmatched = [
        name
        for name in files_without_image(source, [*names, CONFIG], ENDING)
        if re.fullmatch(r"\d+\.pth\.tar", name)
    ]
    check_positions([name.removesuffix(ENDING) for name in unmatched], source, images, order)
    lost = [f"parameters of {name}" for name in AUGMENTING if name in enabled]
    return ImageFiles(
        folder=source,
        names=names,
        contents=Contents(
            kind="kept",
            num_crops=num_crops,
            k=k,
            dtype="float32",
            mixed=mixed,
            temperature=1.0,
            blended=all(name in enabled for name in MIXING),
            input_size=input_side(source, config, stated),
        ),
        parse=_MlDrFile(
            enabled=enabled,
            num_crops=num_crops,
            k=k or 1,
            num_classes=num_classes,
            mixed=mixed,
            order=order,
        ),
        unmatched=unmatched,
        lost=lost,
        facts={
            "transformations": list(enabled),
            "samples": num_samples,
            "dataset": config.dataset,
            **chosen.to_record(),
        },
    )


@dataclass(frozen=True, kw_only=True)
class _MlDrFile:
    enabled: tuple[str, ...]
    num_crops: int
    k: int
    num_classes: int
    mixed: bool
    order: Order

    def __call__(self, path: Path, image: int, height: int, width: int) -> ImageLabels:
        index, samples = read_ml_dr(path)
        if f"{index}{ENDING}" != path.name:
            raise Refused(f"says that it is of image {index}, and is named {path.name}")
        if len(samples) < self.num_crops:
            raise Refused(f"holds {len(samples)} crops of {self.num_crops}")
        samples = samples[: self.num_crops]
        probs = np.array([_row(sample[1], float, self.k) for sample in samples], np.float32)
        ids = np.array([_row(sample[2], int, self.k) for sample in samples], np.int64)
        crops = [self._crop(sample[0]) for sample in samples]
        blended = all(name in self.enabled for name in MIXING)
        boxes = np.array([crop.box for crop in crops], np.int64)
        return ImageLabels(
            labels=kept_probabilities(class_ids(ids, self.num_classes), probs),
            boxes=pixel_boxes(boxes, height, width),
            flips=np.array([crop.flip for crop in crops], bool),
            mixed=_mixed(crops, image, blended=blended) if self.mixed else None,
        )

    def _crop(self, params: Value) -> _Crop:
        by_name, partner, paired = _parameters(params, self.enabled)
        own = _box_and_flip(by_name, 0, paired=paired)
        blend, share, pasted = _blend(by_name.get("mixup"), by_name.get("cutmix"))
        if partner is None:
            return _Crop(box=own[0], flip=own[1])
        if not (type(partner) is int and 0 <= partner < len(self.order)):
            raise Refused(f"has a crop that was mixed with image {shown(partner, 20)}")
        row = int(self.order[partner])
        if row < 0:
            raise Refused("has a crop that was mixed with an image that the folder does not have")
        other = _box_and_flip(by_name, 1, paired=paired)
        return _Crop(
            box=own[0],
            flip=own[1],
            partner=row,
            partner_box=other[0],
            partner_flip=other[1],
            blend=blend,
            share=share,
            pasted=pasted,
        )


@dataclass(frozen=True, kw_only=True)
class _Crop:
    box: tuple[int, int, int, int]
    flip: bool
    partner: int | None = None
    partner_box: tuple[int, int, int, int] | None = None
    partner_flip: bool = False
    blend: float = 1.0
    """This crop's share in mixup; 1: not blended."""
    share: float = 1.0
    """This crop's share of the area in cutmix; 1: nothing was pasted."""
    pasted: tuple[int, int, int, int] = (0, 0, 0, 0)


def read_ml_dr(path: Path) -> tuple[int, list[tuple[Any, Any, Any]]]:
    """Index of the image, and per sample its parameters, probabilities and classes; Refused for anything else."""
    value = load_torch(path)
    if not (isinstance(value, (list, tuple)) and len(value) == 2 and type(value[0]) is int):
        raise Refused("holds no index and samples")
    samples = value[1]
    if not isinstance(samples, list) or not samples:
        raise Refused("holds no samples")
    found = []
    for sample in samples:
        prob = sample.get("prob") if isinstance(sample, dict) else None
        if not (isinstance(prob, (list, tuple)) and len(prob) == 2 and "params" in sample):
            raise Refused("holds a sample without params and prob")
        found.append((sample["params"], prob[0], prob[1]))
    return value[0], found


def _look(path: Path) -> Contents:
    _, samples = read_ml_dr(path)
    classes = samples[0][2]
    if not isinstance(classes, list) or not classes:
        raise Refused("holds a sample without classes")
    return Contents(kind="kept", num_crops=len(samples), k=len(classes), dtype="float32")


@dataclass(frozen=True, kw_only=True)
class _Configuration:
    enabled: tuple[str, ...]
    """Transformations with parameters, in order."""
    num_samples: int
    """Crops per image."""
    dataset: str | None
    size: int | None
    """Side of the teacher's input, pixels."""


def _configuration(value: Value) -> _Configuration:
    """Read a configuration; Refused for one under which crops have no boxes."""
    reinforce = value.get("reinforce") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(reinforce, dict):
        raise Refused("is no configuration of ml-dr: it has no entry reinforce")
    given, samples = reinforce.get("image_augmentation"), reinforce.get("num_samples")
    if not isinstance(given, dict) or type(samples) is not int or samples < 1:
        raise Refused("is no configuration of ml-dr: it has no image_augmentation or num_samples")
    on = enabled_transformations(given)
    enabled = tuple(name for name in ORDER if name in on)
    dataset, size = value.get("dataset"), given["random_resized_crop"].get("size")
    return _Configuration(
        enabled=enabled,
        num_samples=samples,
        dataset=shown(dataset.lower()) if isinstance(dataset, str) else None,
        size=size if type(size) is int and 1 <= size <= 65_534 else None,
    )


def enabled_transformations(given: Value) -> set[str]:
    """Names of the transformations that a configuration enables; Refused for one under which crops have no boxes."""
    if not isinstance(given, dict):
        raise Refused("is no configuration: it has no image_augmentation")
    on = {
        name
        for name, options in given.items()
        if isinstance(options, dict) and options.get("enable", True) is not False
    }
    before = on & {"resize", "center_crop", "random_crop", "timm_resize_crop_norm"}
    if before:
        raise Refused(
            f"enables {min(before)}: boxes are then in pixels of a resized image, which is not on disk"
        )
    if "random_resized_crop" not in on:
        raise Refused("enables no random_resized_crop, so that crops have no boxes")
    return on


def input_side(source: Path, config: _Configuration, stated: Stated) -> int | None:
    """Side of the teacher's input, as the configuration says; RejectedInput where another one was stated."""
    if stated.input_size is not None and config.size not in (None, stated.input_size):
        raise RejectedInput(
            f"{source / CONFIG}: crops are of {config.size} pixels, and input_size {stated.input_size} was stated: "
            "leave it out"
        )
    if config.size is None and "cutmix" in config.enabled:
        stated.need("input_size", f"crops were cut into, and {CONFIG} does not say their size")
    return config.size


@dataclass(frozen=True)
class _Boxes:
    """What the boxes of a sample of the files say about an order."""

    source: Path
    config: _Configuration
    images: ImageSource

    def evidence(self, order: Order) -> list[Evidence | None]:
        """Whether the boxes of each position lie inside its image, and inside its neighbours'."""
        runs = max(1, len(order) // RUN)
        starts = np.unique(np.linspace(0, runs - 1, min(runs, RUNS)).round().astype(int)) * RUN
        groups = []
        for start in starts.tolist():
            stop = len(order) if start == (runs - 1) * RUN else start + RUN
            found = [
                (row, self._boxes(at)) for at, row in enumerate(order[start:stop].tolist(), start)
            ]
            there = [(row, boxes) for row, boxes in found if boxes is not None and row >= 0]
            if not there:
                continue
            sides = np.array([size_or_none(self.images, row) for row, _ in there], np.int64)
            groups.append(np.stack([pixel_boxes_fit(boxes, sides) for _, boxes in there]))
        return [weigh("boxes", groups, must_fit=True)]

    def _boxes(self, position: int) -> NDArray[np.int64] | None:
        path, enabled = self.source / f"{position}{ENDING}", self.config.enabled
        try:
            with named(path):
                found = [_parameters(each[0], enabled) for each in read_ml_dr(path)[1]]
                return np.array([_box_and_flip(p, 0, paired=pair)[0] for p, _, pair in found])
        except RejectedInput:
            return None  # named when it is read


def _parameters(params: Value, enabled: tuple[str, ...]) -> tuple[dict[str, Any], Value, bool]:
    """Parameters by transformation, the partner, and whether each is [mine, partner's]."""
    if isinstance(
        params, dict
    ):  # not compressed: always pairs, of which the second means something with a partner
        is_mixed = any(params.get(name) is not None for name in MIXING if name in enabled)
        by_name = {name: params.get(name) for name in enabled}
        return by_name, params.get("id2") if is_mixed else None, True
    mixed = any(name in enabled for name in MIXING)
    if not isinstance(params, (list, tuple)) or len(params) != len(enabled) + mixed:
        raise Refused(
            f"has crops without the {len(enabled) + mixed} parameters that {CONFIG} promises"
        )
    partner = params[0] if mixed else None
    return dict(zip(enabled, params[mixed:], strict=True)), partner, partner is not None


def _box_and_flip(
    by_name: dict[str, Any], half: int, *, paired: bool
) -> tuple[tuple[int, int, int, int], bool]:
    values = [by_name.get("random_resized_crop"), by_name.get("random_horizontal_flip")]
    if paired:
        if not all(
            isinstance(value, (list, tuple)) and len(value) > half
            for value in values[: 1 + ("random_horizontal_flip" in by_name)]
        ):
            raise Refused("holds a mixed crop without its partner's parameters")
        values = [None if value is None else value[half] for value in values]
    if values[1] is not None and not isinstance(values[1], bool):
        raise Refused("holds a flip that is no flag")
    return pixel_box(values[0]), bool(values[1])


def _row(values: Value, kind: type, k: int) -> list[Any]:
    if isinstance(values, InertArray):
        values = values.array().tolist()
    if not isinstance(values, (list, tuple)) or len(values) != k:
        raise Refused(f"holds a sample without {k} classes")
    if not all(type(value) is kind for value in values):
        raise Refused("holds probabilities or classes of another kind")
    if kind is int and not all(-(2**31) <= value < 2**31 for value in values):
        raise Refused("holds classes beyond any")
    return list(values)


def _blend(mixup: Value, cutmix: Value) -> tuple[float, float, tuple[int, int, int, int]]:
    """Shares of mixup and cutmix (1: not done), and the box that was pasted (top, left, height, width)."""
    blend = 1.0
    if mixup is not None:
        if not (isinstance(mixup, float) and 0 <= mixup <= 1):
            raise Refused("holds a mixing share that is none")
        blend = mixup
    if cutmix is None:
        return blend, 1.0, (0, 0, 0, 0)
    flat = [*cutmix[:1], *cutmix[1]] if _is_nested(cutmix) else cutmix
    if not isinstance(flat, (list, tuple)) or [type(edge) for edge in flat[1:]] != [int] * 4:
        raise Refused("holds a mixing box that is none")
    share, *edges = flat
    if not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise Refused("holds a mixing box that is none")
    return blend, *mix_box(float(share), edges)


def _is_nested(cutmix: Value) -> bool:
    return (
        isinstance(cutmix, (list, tuple))
        and len(cutmix) == 2
        and isinstance(cutmix[1], (list, tuple))
    )


def _mixed(crops: Sequence[_Crop], image: int, *, blended: bool) -> dict[str, NDArray[Any]]:
    """The fields of `schema.MIX_FIELDS`; `blended`: shares are mixup's, also of crops that were cut into."""
    shares = [crop.blend if blended or not crop.pasted[2] else crop.share for crop in crops]
    return {
        "mix_image": np.array(
            [image if crop.partner is None else crop.partner for crop in crops], np.uint32
        ),
        "mix_from": np.array([crop.partner_box or crop.box for crop in crops], np.uint16),
        "mix_flip": np.array(
            [crop.partner_flip if crop.partner_box else crop.flip for crop in crops], np.uint8
        ),
        "mix_share": np.array(shares, np.float32),
        "mix_box": np.array([crop.pasted for crop in crops], np.uint16),
    }
