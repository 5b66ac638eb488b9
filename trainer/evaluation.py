"""Top-1 and top-5 of a network on a folder of images, one subfolder per class, centre crops as timm makes them.

Any checkpoint will do: `TrainConfig(labels="ground-truth", model=..., initial_checkpoint=...)` describes one,
`trainer.models.load_run` loads a run's, `trainer.models.load_named` a library's with its own settings and classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labelstore.cropping.replay import centre_crops
from labelstore.devices import moved
from labelstore.errors import RejectedInput, UsageError
from labelstore.images import ImageFile, ImageSource, open_images
from trainer.config import TrainConfig
from trainer.loader import read_sizes
from trainer.models import Normalise, autocast

Report = Callable[[int, int], None]
"""Called with images done and images in all."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Counts over images; those of several ranks add up."""

    images: NDArray[np.int64]
    """(C,) images of each class."""
    correct: NDArray[np.int64]
    """(C,) of these, images whose class has the largest logit."""
    correct5: NDArray[np.int64]
    """(C,) of these, images whose class is among the five largest logits."""
    loss_sum: float
    """Sum of -log q of the class over images."""

    @property
    def num_images(self) -> int:
        """Images of all classes."""
        return int(self.images.sum())

    @property
    def top1(self) -> float:
        """Percent of all images."""
        return 100 * float(self.correct.sum()) / max(self.num_images, 1)

    @property
    def top5(self) -> float:
        """Percent of all images."""
        return 100 * float(self.correct5.sum()) / max(self.num_images, 1)

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.loss_sum / max(self.num_images, 1)

    @property
    def top1_per_class(self) -> NDArray[np.float64]:
        """(C,) percent of each class; NaN where it has no images."""
        return np.where(self.images > 0, 100 * self.correct / np.maximum(self.images, 1), np.nan)

    def __add__(self, other: Self) -> Evaluation:
        return Evaluation(
            images=self.images + other.images,
            correct=self.correct + other.correct,
            correct5=self.correct5 + other.correct5,
            loss_sum=self.loss_sum + other.loss_sum,
        )


def evaluate(
    model: nn.Module,
    folder: Path,
    config: TrainConfig,
    *,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    report: Report | None = None,
) -> Evaluation:
    """Run a network on the device over every `world_size`-th image of a folder, in evaluation mode.

    `config` says size, crop, interpolation, mean, std, batch, threads, autocast, and which output is which
    class: folders are matched to `class_names` by name, or by order where there are none.
    RejectedInput names an image that cannot be decoded or a folder that is no class.
    """
    images = open_images(folder, keys_only=True)
    outputs = output_of_class(images, config)
    classes = torch.from_numpy(outputs[images.class_ids[rank::world_size]])
    paths = [images.file(key) for key in images.keys[rank::world_size]]
    counts = Counts(config.num_classes or len(images.classes))
    for chosen, logits in forward_all(model, paths, config, device=device, report=report):
        counts.add(logits, classes[chosen])
    return counts.result()


def check_evaluable(folder: Path, config: TrainConfig) -> None:
    """Find out what `evaluate` would not take, before there is a network: unknown classes, headers that are broken.

    A file's header is all that is read of it. UsageError, RejectedInput and StorageError as `evaluate` raises them.
    """
    images = open_images(folder, keys_only=True)
    output_of_class(images, config)
    read_sizes(images, threads=config.workers)


def forward_all(
    model: nn.Module,
    paths: Sequence[ImageFile],
    config: TrainConfig,
    *,
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Outputs (b, C) float32 on the device of centre crops of images, batch by batch, with their places in `paths`.

    The network is in evaluation mode until the iterator ends.
    """
    normalise = Normalise(config.mean, config.std).to(device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            start = 0
            for pixels in centre_crops(
                paths,
                config.input_size,
                config.crop_pct,
                config.interpolation,
                batch_size=config.eval_batch_size,
                workers=config.workers,
                crop_mode=config.crop_mode,
                mean=config.mean,
            ):
                crops = normalise(moved(pixels, device))
                if config.channels_last:
                    crops = crops.contiguous(memory_format=torch.channels_last)
                with autocast(device, config.amp):
                    logits = model(crops)
                yield slice(start, start + len(pixels)), logits.float()
                start += len(pixels)
                if report is not None:
                    report(start, len(paths))
    finally:
        model.train(training)


def judged(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, C), classes (B,) on the CPU -> sum of -log q of the class, a scalar, and whether the class has the
    largest logit, (B,), or one of the five largest, (B,): all on the device of the logits."""
    truth = classes.to(logits.device)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == truth.unsqueeze(1)
    loss = nn.functional.cross_entropy(logits, truth, reduction="sum")
    return loss, best[:, 0], best.any(1)


class Counts:
    """Adds up an `Evaluation`."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._images, self._correct, self._correct5 = np.zeros((3, num_classes), np.int64)
        self._loss_sum = 0.0

    def add(self, logits: Tensor, classes: Tensor) -> None:
        """Logits (B, C) on any device, classes (B,) on the CPU."""
        loss, first, among5 = (values.cpu().numpy() for values in judged(logits, classes))
        self._loss_sum += float(loss)
        self._images += self._count(classes.numpy())
        self._correct += self._count(classes.numpy()[first])
        self._correct5 += self._count(classes.numpy()[among5])

    def _count(self, classes: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(classes, minlength=self._num_classes)

    def result(self) -> Evaluation:
        """The counts as accuracy and loss."""
        return Evaluation(
            images=self._images,
            correct=self._correct,
            correct5=self._correct5,
            loss_sum=self._loss_sum,
        )


def output_of_class(images: ImageSource, config: TrainConfig) -> NDArray[np.int64]:
    """Network output of each class folder; UsageError or RejectedInput where they do not belong together."""
    if not config.class_names:
        if config.num_classes not in (None, len(images.classes)):
            raise UsageError(
                f"{images.root} has {len(images.classes)} classes, the network {config.num_classes} outputs"
                " without names: give class_names"
            )
        return np.arange(len(images.classes))
    output = {name: index for index, name in enumerate(config.class_names)}
    unknown = [name for name in images.classes if name not in output]
    if unknown:
        raise RejectedInput(
            f"{images.root} has a class {unknown[0]!r} that is none of the network's {len(output)}"
            f" ({len(unknown)} such): give images of the classes it was trained on"
        )
    return np.array([output[name] for name in images.classes])
