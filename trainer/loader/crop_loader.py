"""Pixels and labels of every step: threads decode an image once and replay its m crops into the batch.

Batches are preallocated uint8 buffers used in turn, so that nothing is collated or copied on the CPU. What a
step holds depends on the seed and the step only: not on threads, their timing, or where a run resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from torch import Tensor

from labelstore.cropping.device_decoding import DeviceDecoding
from labelstore.devices import copy_event, moved
from labelstore.errors import UsageError
from labelstore.images import ImageSource
from trainer.config import LoaderKind
from trainer.label_tensors import LabelTensors
from trainer.loader.batch_maker import Augment, BatchMaker, OpenBatch
from trainer.loader.batch_process import BatchProcess, PassInProcess
from trainer.loader.crop_pixels import CropPixels
from trainer.loader.image_files import path_by_key
from trainer.loader.pass_labels import PassLabels
from trainer.loader.planes import labels_of
from trainer.loader.ring import BatchRing
from trainer.loader.source import PassSource
from trainer.loader.tails import BatchTails
from trainer.sampler import Deal, check_seed


@dataclass(frozen=True, kw_only=True)
class CropBatch:
    """One rank's crops of one optimiser step: b images, m crops each, crops of an image adjacent.

    `pixels` is a buffer that the loader fills again: it is valid until the next batch is asked for. `to`
    makes a copy on a device. The other tensors are the batch's own.
    """

    pixels: Tensor
    """uint8 (b * m, 3, S, S), channels-last memory."""
    class_ids: Tensor
    """int64 (b * m, K); dense labels have K = C, and one row of ids for all crops (stride 0)."""
    probs: Tensor
    """float32 (b * m, K)."""
    rest: Tensor
    """float32 (b * m,): probability of each class that is not listed."""
    ground_truth: Tensor
    """int64 (b * m,) class of the image, -1 where there is none."""
    regions: Tensor
    """uint8 (b * m,) region codes; the labels are calibrated already."""
    crops: Tensor
    """int64 (b * m,) crop numbers."""
    images: Tensor
    """int64 (b,) image rows."""
    crops_per_image: int
    """m."""
    pass_index: int
    step: int
    """Inside the pass."""
    crops_of_step: int
    """Crops of this step over all ranks: what a mean over the whole batch divides by."""
    tails: BatchTails | None = None
    """What spreads the tails of labels that keep that once per image; `labels` has it in."""
    _copied: list[torch.Event] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def labels(self) -> LabelTensors:
        """class_ids, probs (b * m, K) and rest (b * m,), where the batch is; with tails of images K + L classes."""
        labels = self.class_ids, self.probs, self.rest
        return labels if self.tails is None else self.tails.listed(labels)

    def part(self, first: int, last: int, *, number: int) -> CropBatch:
        """Images [first, last) of the batch as views, for gradient accumulation; `number` becomes its step."""
        crops = slice(first * self.crops_per_image, last * self.crops_per_image)
        return replace(
            self,
            **{
                name: getattr(self, name)[crops]
                for name in (
                    "pixels",
                    "class_ids",
                    "probs",
                    "rest",
                    "ground_truth",
                    "regions",
                    "crops",
                )
            },
            images=self.images[first:last],
            tails=None if self.tails is None else self.tails.part(crops),
            step=number,
        )

    def to(self, device: torch.device | str) -> CropBatch:
        """The batch on a device; from pinned buffers the copy is asynchronous, and the buffer waits for it."""
        device = torch.device(device)
        own = ("probs", "rest", "ground_truth", "regions", "crops", "images")
        parts: dict[str, Any] = {name: moved(getattr(self, name), device) for name in own}
        parts["class_ids"] = _ids_on(device, self.class_ids)
        parts["pixels"] = moved(self.pixels, device, copy=True)
        parts["tails"] = None if self.tails is None else self.tails.to(device)
        batch = replace(self, **parts, _copied=[])
        if (event := copy_event(device)) is not None:
            self._copied.append(event)
        return batch


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How batches are made."""

    workers: int = 2
    """Threads that decode and crop."""
    prefetch: int = 2
    """Batches that are made ahead, at most."""
    pin_memory: bool = False
    decoding: DeviceDecoding | None = None
    """Decodes and crops images on its device, where batches then lie."""
    kind: LoaderKind = "threads"
    """Whose the threads are: this process's, or those of one that is started for them (`process`)."""
    scratch: Path | None = None
    """Where the batches of such a process lie, in a file."""

    def __post_init__(self) -> None:
        """UsageError for what no loader can have."""
        if self.kind not in get_args(LoaderKind):
            raise UsageError(
                f"`loader={self.kind}`: choose one of {', '.join(get_args(LoaderKind))}"
            )
        if self.decoding is not None and self.kind == "process":
            raise UsageError(
                "`loader=process` with `decode_device=device`: that process has no device; leave one of them out"
            )
        if self.workers < 1 or self.prefetch < 1:
            raise UsageError(
                f"workers={self.workers}, prefetch={self.prefetch}: give at least 1 of both"
            )


class CropLoader:
    """Batches of every pass of a source."""

    def __init__(
        self,
        source: PassSource,
        data: Path | ImageSource,
        *,
        batch_size: int,
        input_size: int = 224,
        interpolation: str = "bilinear",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        augment: Augment | None = None,
        options: LoaderOptions | None = None,
    ) -> None:
        """`data` is the folder that the image keys are relative to; B = `batch_size` counts all ranks.

        `augment` changes an image's crops in place. UsageError for a batch size that is not a multiple of m x world
        size, for any m of the schedule; with `options.decoding` where crops are augmented or mixed, which the CPU does;
        and in a process for images or an `augment` that cannot be pickled. In a process one pass is open at a time.
        """
        self.options = options = options or LoaderOptions()
        decoding = options.decoding
        if input_size < 1 or not 0 <= rank < world_size:
            raise UsageError(
                f"input_size={input_size}, rank={rank} of {world_size}: give a size of at least 1 and a rank below "
                "the world size"
            )
        shown = [source.of_pass(number) for number in range(source.schedule.num_passes)]
        changed = any(each.partners or each.augmentation for each in shown)
        if decoding is not None and (augment or changed):
            raise UsageError(
                "`decode_device=device` with augmentation, or with crops that were augmented or mixed for the "
                "teacher: these run on the CPU, use `decode_device=cpu`"
            )
        self.source, self.seed = source, check_seed(seed)
        self.input_size = input_size
        self.deal = Deal(
            schedule=source.schedule,
            num_images=len(source.table),
            batch_size=batch_size,
            world_size=world_size,
        )
        path_of = path_by_key(data, source.table.keys[0])
        self._maker = BatchMaker(
            table=source.table,
            deal=self.deal,
            rank=rank,
            seed=self.seed,
            pixels=tuple(
                CropPixels(
                    path_of=path_of,
                    input_size=input_size,
                    interpolation=interpolation,
                    partners=each.partners,
                    augmentation=each.augmentation,
                    decoding=decoding,
                )
                for each in shown
            ),
            augment=augment,
            workers=options.workers,
        )
        self._buffers: list[Tensor] = []
        self._process: BatchProcess | None = None
        if options.kind == "process":
            self._process = BatchProcess(
                self._maker,
                (options.prefetch + 1, self._crops_of_buffer, input_size),
                scratch=options.scratch,
                pin_memory=options.pin_memory,
            )

    def steps(self, pass_index: int) -> int:
        """Optimiser steps of one pass."""
        return self.deal.steps(pass_index)

    def batches(self, pass_index: int, start_step: int = 0) -> CropBatches:
        """Batches of one pass from one of its steps on; a rank's batch may be smaller than others', or empty.

        Lays out the pass's labels if they are not there yet, and begins with the next pass's.
        """
        if not 0 <= start_step <= self.steps(pass_index):
            raise UsageError(
                f"step {start_step}: pass {pass_index} has steps 0-{self.steps(pass_index)}"
            )
        labels = self.source.pass_labels(pass_index)
        self.source.prepare_later(pass_index + 1)
        return CropBatches(self, pass_index, start_step, labels)

    def close(self) -> None:
        """End the process of `LoaderOptions(kind="process")`, which dropping the loader does too."""
        if self._process is not None:
            self._process.close()

    @property
    def _crops_of_buffer(self) -> int:
        return -(-self.deal.batch_size // self.deal.world_size)

    def _borrow_buffers(self) -> list[Tensor]:
        """One buffer per open batch; an abandoned iterator takes its own with it. A process has its own."""
        if self._buffers or self._process is not None:
            buffers, self._buffers = self._buffers, []
            return buffers
        options = self.options
        return [
            torch.empty(
                (self._crops_of_buffer, 3, self.input_size, self.input_size),
                dtype=torch.uint8,
                memory_format=torch.channels_last,
                pin_memory=options.pin_memory and options.decoding is None,
                device=None if options.decoding is None else options.decoding.device,
            )
            for _ in range(options.prefetch + 1)
        ]


class CropBatches:
    """Iterator over the rest of one pass. Leaving its loop, dropping it or `close` ends its threads."""

    def __init__(
        self, loader: CropLoader, pass_index: int, start_step: int, labels: PassLabels
    ) -> None:
        self._loader, self._pass_index, self._first = loader, pass_index, start_step
        self._labels = labels
        self._count = loader.steps(pass_index) - start_step
        self._at = 0
        self._held: CropBatch | None = None
        self._buffers = loader._borrow_buffers()
        self._ring: BatchRing[OpenBatch] | PassInProcess
        if loader._process is not None:
            self._ring = loader._process.begin(pass_index, start_step, labels)
        else:
            self._ring = loader._maker.ring(pass_index, start_step, labels, self._buffers)

    def __iter__(self) -> Self:
        return self

    def __len__(self) -> int:
        return self._count - self._at

    def __next__(self) -> CropBatch:
        self._give_back()
        if self._at >= self._count:
            self.close()
            raise StopIteration
        try:
            opened = self._ring.get(self._at)
        except BaseException:
            self.close()
            raise
        step = self._first + self._at
        labels = labels_of(opened.records.reshape(-1), self._labels.num_classes)
        tails = self._labels.tails
        deal, m = self._loader.deal, self._labels.crops_per_image
        self._held = CropBatch(
            pixels=opened.pixels,
            class_ids=torch.from_numpy(labels.class_ids)
            if "class_ids" in (opened.records.dtype.names or ())
            else torch.arange(self._labels.num_classes).expand(len(labels.rest), -1),
            probs=torch.from_numpy(labels.probs),
            rest=torch.from_numpy(labels.rest),
            ground_truth=torch.from_numpy(
                np.repeat(self._loader.source.table.ground_truth[opened.indices], m)
            ),
            regions=torch.from_numpy(opened.records["region"].reshape(-1)),
            crops=torch.from_numpy(opened.records["crop"].reshape(-1).astype(np.int64)),
            images=torch.from_numpy(self._labels.images[opened.indices]),
            crops_per_image=m,
            pass_index=self._pass_index,
            step=step,
            crops_of_step=deal.images_of_step(self._pass_index, step) * m,
            tails=None
            if tails is None
            else tails.of_batch(opened.records, self._labels.at(opened.indices)),
        )
        self._at += 1
        return self._held

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. The batch that was given out last stays valid until the next pass begins."""
        self._ring.close()
        self._at = self._count
        if self._buffers:
            self._loader._buffers, self._buffers = self._buffers, []

    def _give_back(self) -> None:
        if self._held is not None:
            for event in self._held._copied:
                event.synchronize()
            self._held = None
            self._ring.release(self._at - 1)


def _ids_on(device: torch.device, class_ids: Tensor) -> Tensor:
    """Class ids on a device; dense labels' one row of them stays one row."""
    if len(class_ids) and class_ids.stride(0) == 0:
        return moved(class_ids[:1], device).expand(class_ids.shape)
    return moved(class_ids, device)
