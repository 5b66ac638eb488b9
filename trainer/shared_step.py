"""How ranks and micro-batches share one optimiser step: every crop of it counts once, whoever sees it.

DistributedDataParallel averages gradients over ranks, so a rank's loss is its sum over crops, times the number of
ranks, over the crops of the whole step. A rank without images in the last step of a pass still has to take part
in the exchange: it adds nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]  # public, but not in an __all__
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from labelstore.devices import backend_of
from labelstore.errors import UsageError
from trainer.loader import CropBatch
from trainer.ranks import Ranks

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def with_synced_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch norm over all ranks, its state dict unchanged; UsageError on a device without it."""
    if not backend_of(device).numbered:
        raise UsageError(
            f"sync_batchnorm on {device.type}: torch has it for cuda and xpu only; leave it off"
        )
    synced: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return synced


def parallel_model(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The network, its gradients exchanged between ranks where there are several."""
    if ranks.world_size == 1:
        return model
    devices = [device] if backend_of(device).numbered else None
    return DistributedDataParallel(model, device_ids=devices)


def micro_batches(batch: CropBatch, count: int, world_size: int = 1) -> Iterator[CropBatch]:
    """A step's crops in up to `count` parts of whole images, as many on every rank; `step` numbers the part.

    The last part is only empty where the rank has no images at all.
    """
    images = len(batch.images)
    # the last step of a pass may be smaller
    largest_share = -(-batch.crops_of_step // (batch.crops_per_image * world_size))
    count = min(count, largest_share)
    bounds = [images * i // count for i in range(count + 1)]
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        yield batch.part(first, last, number=number)


def exchanged(model: nn.Module, *, is_last: bool) -> AbstractContextManager[object]:
    """Around forward and backward of a part: gradients are exchanged with the last part of a step only."""
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def blank_crops(part: CropBatch) -> CropBatch:
    """m black crops without any label, for a rank that has no images: their loss is zero, whatever the network."""
    m = part.crops_per_image
    return replace(
        part,
        pixels=part.pixels.new_zeros(m, *part.pixels.shape[1:]),
        class_ids=part.class_ids.new_zeros(m, 1),
        probs=part.probs.new_zeros(m, 1),
        rest=part.rest.new_zeros(m),
        tails=None,
        ground_truth=part.ground_truth.new_zeros(m),
    )


@contextmanager
def still_averages(model: nn.Module, *, when: bool) -> Iterator[None]:
    """With `when`, batch norm's averages stay in the block: crops that are seen again in the backward pass count
    once."""
    norms = [part for part in model.modules() if when and isinstance(part, BATCH_NORMS)]
    # without the averages the two forward passes would not do the same, which torch checks
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        count = norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


@contextmanager
def still_statistics(model: nn.Module, *, when: bool) -> Iterator[None]:
    """With `when`, leave training mode for the block: crops that are none must not move batch norm's averages."""
    if when:
        model.eval()
    try:
        yield
    finally:
        if when:
            model.train()
