"""How ranks and micro-batches share one optimiser step: every crop of it counts once, on whichever rank.

DistributedDataParallel averages gradients over ranks, so a rank's loss is its sum over crops, times the number of
ranks, over the crops of the whole step. A rank without images in the last step of a pass still has to take part
in the exchange: it adds nothing.
"""

from __future__ import annotations

import copy
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
from trainer.config import TrainConfig
from trainer.loader import CropBatch
from trainer.ranks import Ranks
from trainer.sampler import Deal, hash_words

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


def micro_batches(batch: CropBatch, count: int, deal: Deal) -> Iterator[CropBatch]:
    """A step's crops in up to `count` parts of whole images, as many on every rank; `step` numbers the part.

    A part is only empty where the rank has no images at all.
    """
    images = len(batch.images)
    count = num_parts(deal, batch.pass_index, batch.step, count)
    bounds = [images * i // count for i in range(count + 1)]
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        yield batch.part(first, last, number=number)


def num_parts(deal: Deal, pass_index: int, step: int, count: int) -> int:
    """In how many parts, at most `count`, every rank takes a step.

    The last step of a pass may be smaller: where parts of a full step have several crops, so have its parts.
    """
    most = len(range(*deal.share(pass_index, step).indices(deal.num_images)))
    if deal.images_per_step(pass_index) == deal.batch_size:
        fewest = deal.images_of_step(pass_index, step) // deal.ranks_of_step(pass_index, step)
        if deal.batch_size // deal.world_size >= 2 * count:
            return min(count, max(1, fewest // 2))
    return min(count, most)


def check_single_crops(model: nn.Module, deal: Deal, config: TrainConfig) -> None:
    """UsageError where the network would see one crop alone in training, and cannot: batch norm over a single value.

    It is tried on a copy of the network, and only where a part of a step is a single crop.
    """
    alone = _single_crop(deal, config.accumulation_steps)
    if alone is None or config.sync_batchnorm:
        return
    tried = copy.deepcopy(model).train()
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            tried(torch.zeros(1, 3, config.input_size, config.input_size, device=device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        pass_index, step = alone
        raise UsageError(
            f"batch_size={config.batch_size}, accumulation_steps={config.accumulation_steps}, {deal.world_size} ranks, "
            f"{deal.num_images} images: step {step} of pass {pass_index} would show the network a single crop, over "
            "which its batch norm has no variance; set crops_per_image to 2 or more, or another batch_size (or fewer "
            "accumulation_steps) with at least 3 crops on each rank and in each part"
        ) from None


def _single_crop(deal: Deal, count: int) -> tuple[int, int] | None:
    """(pass, step) of a part of a step that is a single crop; None where there is none."""
    first_of_m = {m: p for p, m in reversed([*enumerate(deal.schedule.crops_per_pass)])}
    if 1 not in first_of_m:
        return None
    pass_index = first_of_m[1]
    steps = deal.steps(pass_index)
    # all steps before these two are full
    for step in sorted({0, max(steps - 2, 0), steps - 1}):
        parts = num_parts(deal, pass_index, step, count)
        for rank in range(deal.world_size):
            share = deal.share(pass_index, step, rank)
            images = share.stop - share.start
            if images and images // parts <= 1:
                return pass_index, step
    return None


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


_NETWORK = 0x6E6574
"""First word of the key: apart from whatever else is keyed by (seed, step)."""


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """A block whose draws leave torch's generators of the CPU and of `device` as they were for the caller."""
    with torch.random.fork_rng(devices=[]):
        if device.type == "cpu":
            yield
            return
        module = torch.get_device_module(device)
        which = (device,) if backend_of(device).numbered else ()
        state = module.get_rng_state(*which)
        try:
            yield
        finally:
            module.set_rng_state(state, *which)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one optimiser step of one rank; nothing before it shows."""
    torch.manual_seed(int(hash_words(_NETWORK, seed, step, rank)[0]))
