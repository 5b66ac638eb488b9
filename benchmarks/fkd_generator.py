"""Label generation in the manner of FKD's released generator, as the bar to be measured against; written anew.

A DataLoader worker opens one image with Pillow and returns all its crops as normalised float32 tensors; each image is
one forward pass; the top classes are sorted out crop by crop; each image is one `torch.save`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop, ToTensor
from torchvision.transforms import functional as F


class AllCrops(Dataset[tuple[Tensor, Tensor, Tensor, int]]):
    """One image per item: (M, 3, S, S) float32 crops, (M, 4) boxes, (M,) flips, and its number."""

    def __init__(
        self,
        paths: Sequence[Path],
        num_crops: int,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.paths, self.num_crops, self.size = paths, num_crops, size
        self.mean, self.std = list(mean), list(std)
        self.draw = RandomResizedCrop(size)
        self.to_tensor = ToTensor()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor, int]:
        with Image.open(self.paths[number]) as file:
            image = file.convert("RGB")
        crops, boxes, flips = [], [], []
        for _ in range(self.num_crops):
            box = self.draw.get_params(image, list(self.draw.scale), list(self.draw.ratio))
            flip = bool(torch.rand(1) < 0.5)
            crop = F.resized_crop(image, *box, [self.size, self.size])
            crop = F.hflip(crop) if flip else crop
            crops.append(F.normalize(self.to_tensor(crop), self.mean, self.std))
            boxes.append(box)
            flips.append(flip)
        return torch.stack(crops), torch.tensor(boxes), torch.tensor(flips), number


@torch.inference_mode()
def generate(
    model: nn.Module,
    paths: Sequence[Path],
    output: Path,
    *,
    num_crops: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    k: int,
    workers: int,
) -> None:
    """Label every crop of every image: one file per image in `output`."""
    data = AllCrops(paths, num_crops, size, mean, std)
    loader: DataLoader[Any] = DataLoader(data, batch_size=1, num_workers=workers)
    for crops, boxes, flips, number in loader:
        probs = torch.softmax(model(crops[0]), dim=1)
        labels = []
        for row in probs:
            order = torch.argsort(row, descending=True)[:k]
            labels.append((order.to(torch.int16), row[order].half()))
        ids = torch.stack([ids for ids, _ in labels])
        kept = torch.stack([values for _, values in labels])
        torch.save([boxes[0], flips[0], [ids, kept]], output / f"{int(number)}.tar")
