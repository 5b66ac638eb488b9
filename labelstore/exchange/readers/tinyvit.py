"""TinyViT's saved logits: `SOURCE/logits_topK_epochE/rankR-keys.txt` and `rankR-values.bin`, a crop per image and
epoch.

Line i of the keys is whose record i is: 4 bytes seed (int32), K classes (int16), K probabilities (float16, softmax,
descending), little-endian. A key is an image's file name (ImageNet-22k), or its position in the data set that the run
opened: timm's reader of `train.tar` (order `natural`), or torchvision's of a folder (`folder`). Nothing in the files
tells these apart: a shuffle stays within a class, and boxes fit any image.

Boxes are not kept, but follow from the seed: the crop is the first thing that is drawn, by numpy's PCG64(seed), u_0,
u_1, ... uniform in [0, 1):

    up to ten times: area = (s_0 + u (s_1 - s_0)) H W;  ratio = exp(log r_0 + u (log r_1 - log r_0));
                     w = round(sqrt(area ratio));  h = round(sqrt(area / ratio));
                     if it fits: top = min(int(u (H - h + 1)), H - h), left likewise; done
    then the largest centre crop;  flip = u < flip probability

with a fresh u wherever one stands. Scale s, ratio r and the flip probability are the run's (0.08 to 1, 3/4 to 4/3,
0.5).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.labels import Contents, ImageLabels
from labelstore.exchange.readers.image_orders import Chosen, check_count, positions_of, rows_by_name
from labelstore.exchange.readers.label_values import class_ids, kept_probabilities
from labelstore.exchange.readers.sources import ImageRows, Piece, Scattered, check_folder
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.refusal import Refused, named, read_bytes

MAX_VALUES_BYTES = 16 << 30
MAX_KEYS_BYTES = 4 << 30
ATTEMPTS = 10
LOST = ("RandAugment, colour jitter and random erasing: what follows the crop and the flip",)


def open_tinyvit(source: Path, images: ImageSource, stated: Stated) -> Scattered:
    """TinyViT's labels; boxes and flips are computed from the seeds."""
    folders, k = _epochs(source)
    stated.need(
        "drop_augmentations",
        "TinyViT's crops were augmented further, which a store cannot keep; labels of crops that were mixed with "
        "others (MIXUP or CUTMIX above 0) must not be imported",
    )
    num_crops, num_classes = stated.crops(len(folders)), stated.classes("tinyvit")
    keys = _Keys.of(source, folders, images, stated)
    pieces = [path for folder in folders for path in sorted(folder.glob("rank*-values.bin"))]
    if not pieces:
        raise RejectedInput(f"{folders[0]} holds no file rank0-values.bin")
    return Scattered(
        source=source,
        images=images,
        pieces=pieces,
        read_piece=_Reader(pieces, folders, k, keys),
        most=len(folders),
        finish=_Finish(
            k=k,
            num_classes=num_classes,
            law=CropLaw(
                scale=stated.scale or (0.08, 1.0),
                ratio=stated.ratio or (3 / 4, 4 / 3),
                flip_prob=0.5 if stated.flip_prob is None else stated.flip_prob,
            ),
        ),
        contents=Contents(
            kind="kept",
            num_crops=num_crops,
            k=k,
            dtype="float16",
            temperature=1.0,
        ),
        num_crops=stated.num_crops,
        lost=LOST,
        facts={"epochs": len(folders), **({} if keys.chosen is None else keys.chosen.to_record())},
    )


@dataclass(frozen=True, kw_only=True)
class CropLaw:
    """TinyViT's crop of an image, as a function of the record's seed."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_prob: float = 0.5

    def crop(self, seed: int, height: int, width: int) -> tuple[tuple[int, int, int, int], bool]:
        """Box (top, left, height, width) in pixels, and flip."""
        drawn = iter(np.random.Generator(np.random.PCG64(seed)).random(2 * ATTEMPTS + 3).tolist())
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(ATTEMPTS):
            area = (next(drawn) * (self.scale[1] - self.scale[0]) + self.scale[0]) * (
                width * height
            )
            aspect = math.exp(next(drawn) * (high - low) + low)
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w <= width and h <= height:
                top = min(int(next(drawn) * (height - h + 1)), height - h)
                left = min(int(next(drawn) * (width - w + 1)), width - w)
                break
        else:
            h, w = self._centre(height, width)
            top, left = (height - h) // 2, (width - w) // 2
        return (top, left, h, w), self.flip_prob > 0 and next(drawn) < self.flip_prob

    def _centre(self, height: int, width: int) -> tuple[int, int]:
        if width / height < min(self.ratio):
            return round(width / min(self.ratio)), width
        if width / height > max(self.ratio):
            return height, round(height * max(self.ratio))
        return height, width


@dataclass(frozen=True)
class _Reader:
    paths: list[Path]
    folders: list[Path]
    k: int
    keys: _Keys

    def __call__(self, number: int) -> Piece:
        path = self.paths[number]
        keys = _read_keys(path)
        data = read_bytes(path, MAX_VALUES_BYTES)
        size = 4 + 4 * self.k
        if len(data) != size * len(keys):
            raise Refused(f"has {len(data)} bytes where {len(keys)} records of {size} are due")
        records = np.frombuffer(data, np.uint8).reshape(-1, size)
        ids, probs = records[:, 4 : 4 + 2 * self.k], records[:, 4 + 2 * self.k :]
        # an image that is a multiple of the ranks' share short is labelled twice in an epoch: the first counts
        images = np.array([self.keys.rows.get(key, -1) for key in keys], np.int64)
        _, first = np.unique(images, return_index=True)
        again = np.ones(len(images), bool)
        again[first] = False
        images[again] = -1
        return Piece(
            images=images,
            values={
                "seed": np.ascontiguousarray(records[:, :4]).view("<i4")[:, 0],
                "class": np.ascontiguousarray(ids).view("<i2"),
                "prob": np.ascontiguousarray(probs).view("<f2"),
            },
            crops=np.full(len(images), self.folders.index(path.parent), np.int64),
        )


@dataclass(frozen=True, kw_only=True)
class _Finish:
    k: int
    num_classes: int
    law: CropLaw

    def __call__(self, rows: ImageRows) -> ImageLabels:
        values, seeds = rows.values, rows.values["seed"]
        if seeds.min() < 0:
            raise Refused(f"has seed {seeds.min()}")
        crops = [self.law.crop(int(seed), rows.height, rows.width) for seed in seeds]
        boxes = np.array([box for box, _ in crops], np.int64)
        if boxes[:, 2:].min() < 1:
            raise Refused("has a crop without pixels")
        return ImageLabels(
            labels=kept_probabilities(class_ids(values["class"], self.num_classes), values["prob"]),
            boxes=boxes.astype(np.uint16),
            flips=np.array([flip for _, flip in crops], bool),
        )


def _epochs(source: Path) -> tuple[list[Path], int]:
    check_folder(source, "tinyvit")
    matches = (
        (re.fullmatch(r"logits_top(\d{1,4})_epoch(\d{1,6})", p.name), p) for p in source.iterdir()
    )
    epochs = sorted((int(match[2]), int(match[1]), path) for match, path in matches if match)
    if not epochs:
        raise RejectedInput(f"{source} holds no folder logits_top100_epoch0 or the like")
    kept = {k for _, k, _ in epochs}
    if len(kept) > 1 or 0 in kept:
        raise RejectedInput(
            f"{source} holds epochs of K = {', '.join(map(str, sorted(kept)))}: give one K"
        )
    return [path for _, _, path in epochs], kept.pop()


def _read_keys(values: Path) -> list[str]:
    """Keys of the records in a file of values."""
    path = values.with_name(values.name.replace("-values.bin", "-keys.txt"))
    with named(path):
        try:
            text = read_bytes(path, MAX_KEYS_BYTES).decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("is no text") from None
    return [key.strip() for key in text.splitlines()]


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """Image row of each key."""

    rows: Mapping[str, int]
    chosen: Chosen | None
    """Order of the data set; None where keys are names."""

    @classmethod
    def of(
        cls, source: Path, folders: Sequence[Path], images: ImageSource, stated: Stated
    ) -> _Keys:
        """Rows by the keys of the first epoch: positions if all are numbers, otherwise names."""
        keys: set[str] = set()
        for path in sorted(folders[0].glob("rank*-values.bin")):
            keys.update(_read_keys(path))
        if not all(re.fullmatch(r"[0-9]{1,18}", key) for key in keys):
            if stated.order is not None:
                raise UsageError(
                    f"order {stated.order[:100]}: keys of {source} are names of images; leave it out"
                )
            return cls(rows=rows_by_name(images), chosen=None)
        order, chosen = positions_of(
            source,
            images,
            stated,
            lambda order: (),
            question="keys are positions in the data set that the run opened",
            names=("folder", "natural"),
            complete=True,
        )
        check_count(1 + max(map(int, keys)), "keys are positions among", images, order, source)
        return cls(rows={str(at): row for at, row in enumerate(order.tolist())}, chosen=chosen)
