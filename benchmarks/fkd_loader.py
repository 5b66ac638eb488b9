"""Training batches in the manner of FKD's released loader, as the bar to be measured against; written anew.

One file of `torch.save` per image holds all its crops: boxes (M, 4) as shares of the sides, flips (M,), labels
(M, 2, K) float32 with classes and probabilities, as NumPy arrays. A DataLoader worker loads that file, opens the image
with Pillow, picks m random crops, and makes each a normalised float32 tensor; torch's own collation stacks them, one
list entry per crop; the training process joins the entries and recovers dense labels (B, C) on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor
from torchvision.transforms import functional as F

from labelstore.exchange.readers.fkd import label_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from labelstore.store import LabelSet

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def write_files(labels: LabelSet, folder: Path, images: range) -> None:
    """FKD's file of every image in a range of image rows: the labels, boxes and flips of a label set."""
    keys = labels.store.image_columns["key"]
    sizes = np.stack([labels.store.image_columns[side] for side in ("height", "width")], axis=1)
    for block in labels.blocks:
        rows = labels.block_rows(block)
        sparse, (boxes, flips) = labels.sparse(block), labels.crops(block)
        for row in range(max(rows.start, images.start), min(rows.stop, images.stop)):
            at = row - rows.start
            sides = np.tile(sizes[row], 2).astype(np.float32)
            pairs = np.stack([sparse.class_ids[at].astype(np.float32), sparse.probs[at]], axis=1)
            path = folder / label_file(str(keys[row]))
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save([(boxes[at] / sides).astype(np.float32), flips[at], pairs], path)


def read_file(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Boxes, flips and labels of one image; of our own making, so that its pickle may be run."""
    boxes, flips, labels = torch.load(path, weights_only=False)
    return boxes, flips, labels


class FkdImages(Dataset[tuple[list[Tensor], list[int], list[Any]]]):
    """One image per item: m crops as float32 (3, S, S), m times its number, m labels (2, K)."""

    def __init__(self, root: Path, labels: Path, keys: Sequence[str], m: int, size: int) -> None:
        self.root, self.labels, self.keys, self.m, self.size = root, labels, list(keys), m, size
        self.to_tensor = ToTensor()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> tuple[list[Tensor], list[int], list[Any]]:
        key = self.keys[number]
        boxes, flips, labels = read_file(self.labels / label_file(key))
        order = torch.randperm(len(labels))
        with (self.root / key).open("rb") as file:
            image = Image.open(file).convert("RGB")
        chosen = [int(order[nth]) for nth in range(self.m)]
        crops = [self.crop(image, boxes[crop], bool(flips[crop])) for crop in chosen]
        return crops, [number] * self.m, [labels[crop] for crop in chosen]

    def crop(self, image: Image.Image, box: NDArray[Any], flip: bool) -> Tensor:
        """One crop as the network sees it."""
        width, height = image.size
        top, left, rows, columns = (
            round(float(share) * side)
            for share, side in zip(box, (height, width, height, width), strict=True)
        )
        crop = F.resized_crop(image, top, left, rows, columns, [self.size, self.size])
        crop = F.hflip(crop) if flip else crop
        return F.normalize(self.to_tensor(crop), MEAN, STD)


def batches(
    images: FkdImages, *, images_per_batch: int, workers: int, num_classes: int, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pixels (B, 3, S, S) float32, image numbers (B,), dense labels (B, C), in random order of images."""
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size=images_per_batch,
        shuffle=len(images) > 0,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
    )
    for crops, numbers, labels in loader:
        yield torch.cat(crops), torch.cat(numbers), recover(torch.cat(labels), num_classes)


def recover(labels: Tensor, num_classes: int) -> Tensor:
    """Marginal smoothing (FKD Eq. 5): (B, 2, K) classes and probabilities -> dense (B, C)."""
    ids, probs = labels[:, 0].long(), labels[:, 1]
    rest = (1 - probs.sum(1, keepdim=True)) / (num_classes - probs.shape[1])
    return rest.expand(-1, num_classes).scatter(1, ids, probs)
