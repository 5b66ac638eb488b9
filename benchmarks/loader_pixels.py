"""The pixel side of loaders: CPU time per crop of ours, FKD's, the floor, and a plain ImageFolder with timm's loader.

Everything counts: reading, decoding, cropping, resizing, labels, batches; threads and worker processes alike. Starting
worker processes does not, since a run does so once. The floor is one JPEG decode and m resizes by the functions that
our loader uses, in as many threads, with nothing around them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder as TorchvisionFolder

from benchmarks import fkd_loader
from benchmarks.generation import Spent, spent
from benchmarks.loader_data import LoaderData
from benchmarks.scale_store import NUM_CLASSES
from labelstore.cropping.crop_plan import CropPlan
from labelstore.cropping.pictures import DECODE_JPEG
from labelstore.cropping.replay import TORCH_KERNELS
from trainer.loader import (
    CropLoader,
    GroundTruthPasses,
    LoaderOptions,
    PassSource,
    StoredPasses,
    read_sizes,
)
from trainer.sampler import PassSchedule

SIZE = 224
IMAGES_PER_BATCH = 16
ROUNDS_AT_MOST = 1000
Side = Callable[[int], Spent]
"""Spends the CPU time of one round, given its number."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """CPU microseconds per crop of every side in every round; the sides took turns."""

    us: dict[str, list[float]] = field(default_factory=dict)
    crops: int = 0
    """Of one round of one side."""

    def of(self, side: str) -> float:
        """Median over the rounds."""
        return median(self.us[side])

    def ratio(self, side: str, over: str) -> float:
        """Median over the rounds of one side's time over another's in the same round."""
        pairs = zip(self.us[side], self.us[over], strict=True)
        return median(one / other for one, other in pairs)


def take_turns(sides: dict[str, Side], rounds: int, crops: int) -> Rounds:
    """Every side once per round, each round beginning with another one."""
    found = Rounds(us={name: [] for name in sides}, crops=crops)
    names = list(sides)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found.us[name].append(1000 * sides[name](number).cpu_ms)
    return found


def measure(
    data: LoaderData, m: int, *, rounds: int, workers: int, stack: ExitStack, scratch: Path
) -> Rounds:
    """Ours, FKD's and the floor, at m crops per image."""
    schedule = PassSchedule.of(passes=ROUNDS_AT_MOST, crops_per_image=m)
    source = stack.enter_context(StoredPasses(data.labels, schedule=schedule, scratch=scratch))
    sides = {
        "ours": ours(source, data, m, workers),
        "fkd": fkd(data, m, workers),
        "floor": floor(source, data, m, workers),
    }
    return take_turns(sides, rounds, len(data.keys) * m)


def measure_fresh_crops(
    data: LoaderData, *, rounds: int, workers: int, stack: ExitStack, scratch: Path
) -> Rounds:
    """RandomResizedCrop and flips without stored labels, m = 1: ours, and ImageFolder in timm's loader."""
    schedule = PassSchedule.of(passes=ROUNDS_AT_MOST, crops_per_image=1)
    source = stack.enter_context(
        GroundTruthPasses(
            CropPlan(seed=0),
            keys=data.keys,
            class_ids=data.images.class_ids,
            sizes=read_sizes(data.images),
            num_classes=NUM_CLASSES,
            schedule=schedule,
            scratch=scratch,
        )
    )
    sides = {"ours": ours(source, data, 1, workers), "timm": timm_loader(data, workers)}
    return take_turns(sides, rounds, len(data.keys))


def ours(source: PassSource, data: LoaderData, m: int, workers: int) -> Side:
    """One pass of `trainer.loader`: as many threads as the others have worker processes."""
    loader = CropLoader(
        source,
        data.images,
        batch_size=IMAGES_PER_BATCH * m,
        input_size=SIZE,
        options=LoaderOptions(workers=workers),
    )

    def one_pass(number: int) -> Spent:
        def work() -> None:
            for batch in loader.batches(number):
                assert batch.pixels.dtype == torch.uint8

        return spent(work, len(data.keys) * m)

    one_pass(ROUNDS_AT_MOST - 1)  # buffers, and the first slab
    return one_pass


def fkd(data: LoaderData, m: int, workers: int) -> Side:
    """One epoch of `benchmarks.fkd_loader`, less what its workers take to start."""

    def epoch(keys: list[str], seed: int) -> Spent:
        images = fkd_loader.FkdImages(data.images.root, data.fkd, keys, m, SIZE)

        def work() -> None:
            for pixels, _, labels in fkd_loader.batches(
                images,
                images_per_batch=IMAGES_PER_BATCH,
                workers=workers,
                num_classes=NUM_CLASSES,
                seed=seed,
            ):
                assert pixels.dtype == labels.dtype == torch.float32

        return spent(work, len(keys) * m)

    return without_start(lambda number: epoch(list(data.keys), number), lambda: epoch([], 0))


def without_start(whole: Side, nothing: Callable[[], Spent]) -> Side:
    """The same side without what it spends on as good as no images, these not counted."""

    def less(number: int) -> Spent:
        start, all_of_it = nothing(), whole(number)
        return Spent(
            wall=all_of_it.wall - start.wall,
            cpu=all_of_it.cpu - start.cpu,
            crops=all_of_it.crops - start.crops,
        )

    return less


def floor(source: PassSource, data: LoaderData, m: int, workers: int) -> Side:
    """One JPEG decode and m resizes per image of what a pass draws; files are in memory, crops go where ours go."""
    files = [(data.images.root / key).read_bytes() for key in data.keys]
    resize = TORCH_KERNELS["bilinear"]
    # three batches are in flight in our loader, too: crops that stay in a cache would be cheaper
    room = torch.empty(
        (3 * IMAGES_PER_BATCH * m, 3, SIZE, SIZE),
        dtype=torch.uint8,
        memory_format=torch.channels_last,
    )
    assert DECODE_JPEG is not None

    def images(boxes: list[Any], first: int) -> None:
        torch.set_num_threads(1)
        for image in range(first, len(files), workers):
            rows = DECODE_JPEG(files[image], colorspace="RGB", strict=True)
            at = image * m % len(room)
            for nth, (top, left, height, width) in enumerate(boxes[image], at):
                crop = np.ascontiguousarray(rows[top : top + height, left : left + width])
                given = torch.from_numpy(crop[None]).permute(0, 3, 1, 2)
                resize(given, (SIZE, SIZE), False, None, None, out=room[nth : nth + 1])

    def one_pass(number: int) -> Spent:
        boxes = source.pass_labels(number).boxes.tolist()

        def work() -> None:
            threads = [Thread(target=images, args=(boxes, first)) for first in range(workers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        return spent(work, len(files) * m)

    return one_pass


def timm_loader(data: LoaderData, workers: int) -> Side:
    """torchvision's ImageFolder in timm's loader: random resized crop and flip, uint8 batches.

    What timm does after them (moving to the device, normalising there) is left out, as it is of ours.
    """
    from timm.data import create_loader

    def loader(folder: TorchvisionFolder) -> DataLoader[object]:
        whole = create_loader(
            folder,
            input_size=(3, SIZE, SIZE),
            batch_size=IMAGES_PER_BATCH,
            is_training=True,
            color_jitter=None,
            interpolation="bilinear",
            num_workers=workers,
            persistent_workers=False,
            device=torch.device("cpu"),
        )
        inner: DataLoader[object] = whole.loader
        return inner

    def epoch(samples: int) -> Spent:
        folder = TorchvisionFolder(str(data.images.root))
        folder.samples = folder.samples[:samples]
        batches = loader(folder)

        def work() -> None:
            for pixels, _ in batches:
                assert pixels.dtype == torch.uint8

        return spent(work, samples)

    return without_start(lambda number: epoch(len(data.keys)), lambda: epoch(IMAGES_PER_BATCH))
