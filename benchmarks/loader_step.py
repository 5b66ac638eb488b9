"""Whole training steps: what share of one the loader and the labels take on the CPU; how fast a GPU would eat crops."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.generation import Spent, spent
from benchmarks.loader_data import LoaderData
from benchmarks.loader_pixels import IMAGES_PER_BATCH, ROUNDS_AT_MOST, SIZE, ours, take_turns
from benchmarks.scale_store import NUM_CLASSES, K
from trainer.loader import CropLoader, LoaderOptions, StoredPasses
from trainer.loader.tails import BatchTails
from trainer.losses import SparseSoftCrossEntropy
from trainer.models import Normalise
from trainer.sampler import PassSchedule

STUDENT = "mobilenetv3_small_100"
CROPS_PER_IMAGE = 4
GPU_STUDENT, GPU_BATCH, GPU_STEPS = "resnet50", 256, 30
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def measure_cpu(
    data: LoaderData, *, rounds: int, workers: int, stack: ExitStack, scratch: Path
) -> dict[str, Any]:
    """A small student trained on stored labels: CPU time per crop of the step, of the loader alone, of the labels."""
    m = CROPS_PER_IMAGE
    schedule = PassSchedule.of(passes=ROUNDS_AT_MOST, crops_per_image=m)
    source = stack.enter_context(StoredPasses(data.labels, schedule=schedule, scratch=scratch))
    sides = {
        "step": steps(source, data, workers),
        "loader": ours(source, data, m, workers),
        "soft": lambda number: losses(soft=True),
        "hard": lambda number: losses(soft=False),
        "tail": lambda number: losses(soft=True, tails=image_tails()),
    }
    found = take_turns(sides, rounds, len(data.keys) * m)
    labels = max(0.0, found.of("soft") - found.of("hard"))
    return {
        "student": STUDENT,
        "step_us_per_crop": found.of("step"),
        "loader_us_per_crop": found.of("loader"),
        "soft_loss_us_per_crop": found.of("soft"),
        "hard_loss_us_per_crop": found.of("hard"),
        "tail_loss_us_per_crop": found.of("tail"),
        "loader_share": found.ratio("loader", "step"),
        "label_loss_share": labels / found.of("step"),
    }


def steps(source: StoredPasses, data: LoaderData, workers: int) -> Any:
    """One pass of training steps, the loader's threads beside them."""
    m = CROPS_PER_IMAGE
    torch.manual_seed(0)
    model = timm.create_model(STUDENT, num_classes=NUM_CLASSES).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    normalise, loss_of = Normalise(MEAN, STD), SparseSoftCrossEntropy()
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
                logits = model(normalise(batch.pixels))
                loss = loss_of(logits, *batch.labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        return spent(work, len(data.keys) * m)

    return one_pass


def losses(*, soft: bool, times: int = 20, tails: BatchTails | None = None) -> Spent:
    """The loss of stored labels, or that of class indices, forward and backward, on ready logits.

    With `tails` labels list the classes of their images' tables first, as a batch does on the device.
    """
    crops = IMAGES_PER_BATCH * CROPS_PER_IMAGE
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(crops, NUM_CLASSES, generator=generator, requires_grad=True)
    label = sparse_labels(crops, torch.device("cpu"))
    truth, soft_loss = label[0][:, 0], SparseSoftCrossEntropy()

    def work() -> None:
        for _ in range(times):
            if soft:
                loss = soft_loss(logits, *(label if tails is None else tails.listed(label)))
            else:
                loss = nn.functional.cross_entropy(logits, truth)
            loss.backward()

    return spent(work, times * crops)


def image_tails(entries: int = 100) -> BatchTails:
    """Random tables of the images of a batch, and what spreads each crop's tail over its image's."""
    generator = torch.Generator().manual_seed(2)
    shares = torch.softmax(2 * torch.randn(IMAGES_PER_BATCH, entries, generator=generator), 1)
    return BatchTails(
        class_ids=torch.rand(IMAGES_PER_BATCH, NUM_CLASSES, generator=generator).argsort(1)[
            :, :entries
        ],
        shares=shares,
        scale=torch.full((IMAGES_PER_BATCH * CROPS_PER_IMAGE,), 0.1),
        table=torch.arange(IMAGES_PER_BATCH).repeat_interleave(CROPS_PER_IMAGE),
    )


def sparse_labels(crops: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random labels as a loader hands them over: ids (B, K), probabilities (B, K), rest (B,)."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(NUM_CLASSES, (crops, K), generator=generator)
    probs = torch.softmax(torch.randn(crops, K, generator=generator), 1) * 0.9
    rest = torch.full((crops,), 0.1 / (NUM_CLASSES - K))
    return ids.to(device), probs.to(device), rest.to(device)


def measure_gpu(cpu_us_per_crop: float) -> dict[str, Any]:
    """Crops/s of ResNet-50 in bf16 with stored labels and with class indices, and the CPU cores that would feed it."""
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device here"}
    device = torch.device("cuda")
    rates = {
        name: _gpu_rate(device, soft=name == "stored_labels")
        for name in ("stored_labels", "class_indices")
    }
    return {
        "device": torch.cuda.get_device_name(device),
        "student": GPU_STUDENT,
        "batch_size": GPU_BATCH,
        "crops_per_s": rates,
        "cpu_us_per_crop": cpu_us_per_crop,
        "cores_to_keep_it_fed": rates["stored_labels"] * cpu_us_per_crop / 1e6,
    }


def _gpu_rate(device: torch.device, *, soft: bool) -> float:
    """Crops per second of training steps; pixels wait on the device, labels come from pinned memory at every step."""
    torch.manual_seed(0)
    model = timm.create_model(GPU_STUDENT, num_classes=NUM_CLASSES).to(
        device, memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    normalise, soft_loss = Normalise(MEAN, STD).to(device), SparseSoftCrossEntropy()
    shape = (GPU_BATCH, 3, SIZE, SIZE)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    label = [part.pin_memory() for part in sparse_labels(GPU_BATCH, torch.device("cpu"))]
    started = 0.0
    for step in range(2 * GPU_STEPS):
        if step == GPU_STEPS:  # the first half warms up
            torch.cuda.synchronize(device)
            started = time.perf_counter()
        ids, probs, rest = (part.to(device, non_blocking=True) for part in label)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(normalise(pixels))
        loss = (
            soft_loss(logits, ids, probs, rest)
            if soft
            else nn.functional.cross_entropy(logits.float(), ids[:, 0])
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize(device)
    return GPU_STEPS * GPU_BATCH / (time.perf_counter() - started)
