"""A self-supervised teacher for FKD Table 9: SimCLR (Chen et al. 2020) on the teacher's pictures, without their classes.

Two crops of a picture, their colours changed, are each other's positive among all crops of a batch; the network's last
layer is the projection head, whose outputs the store keeps before softmax. Small: what the table asks is whether a student
learns as much from stored outputs as from a teacher that runs beside it, not how good the teacher is.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.nn import functional

from benchmarks.papers.setting import Setting
from labelstore.cropping.crop_plan import CropPlan
from labelstore.images import scan_folder
from trainer.loader import CropLoader, LoaderOptions
from trainer.loader.ground_truth import GroundTruthPasses, read_sizes
from trainer.sampler import PassSchedule

ARCHITECTURE = "timm:resnet18"
OUTPUTS = 128
"""D of the projection head, as MoCo v2's."""
WIDTH = 16
SEED = 300
BATCH_SIZE = 256
LR = 2e-3
TEMPERATURE = 0.2
COLOUR = 0.4
"""Brightness, contrast and saturation change by up to this share."""
GREY = 0.2
"""Share of crops without colour."""


def options(setting: Setting) -> dict[str, object]:
    """What timm builds the network with."""
    return {**setting.network(WIDTH), "num_classes": OUTPUTS}


def pretrain(setting: Setting, images: Path, path: Path) -> Path:
    """Weights of the teacher at `path`, trained unless they are there."""
    if path.exists():
        return path
    torch.manual_seed(SEED)
    network = timm.create_model("resnet18", **options(setting))
    config = network.pretrained_cfg
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    folder = scan_folder(images)
    source = GroundTruthPasses(
        CropPlan(seed=SEED, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip_prob=0.0),
        keys=folder.keys,
        class_ids=folder.class_ids,
        sizes=read_sizes(folder),
        num_classes=len(folder.classes),
        schedule=PassSchedule.of(passes=setting.teacher_epochs, crops_per_image=2),
        scratch=path.parent,
    )
    batch_size = min(BATCH_SIZE, 2 * len(folder))
    with source:
        loader = CropLoader(
            source,
            images,
            batch_size=batch_size,
            input_size=setting.input_size,
            seed=SEED,
            options=LoaderOptions(workers=1),
        )
        optimizer = create_optimizer_v2(network, opt="adamw", lr=LR, weight_decay=1e-4)
        steps = sum(loader.steps(number) for number in range(setting.teacher_epochs))
        falling = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=steps)
        generator = torch.Generator().manual_seed(SEED)
        for number in range(setting.teacher_epochs):
            total = torch.zeros(())
            with loader.batches(number) as batches:
                for batch in batches:
                    pixels = recoloured(batch.pixels.float() / 255, generator)
                    loss = nt_xent(network((pixels - mean) / std))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    falling.step()
                    total += loss.detach()
            print(
                f"self-supervised teacher, epoch {number + 1} of {setting.teacher_epochs}: "
                f"loss {float(total) / loader.steps(number):.3f}",
                flush=True,
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, temporary)
    temporary.replace(path)
    return path


def nt_xent(outputs: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """SimCLR Eq. 1: outputs (2 n, D), the two crops of a picture adjacent -> mean loss.

    >>> apart = torch.eye(4).repeat_interleave(2, 0)
    >>> round(nt_xent(apart, 0.01).item(), 4), round(nt_xent(torch.ones(4, 2)).item(), 4)
    (0.0, 1.0986)
    """
    normal = functional.normalize(outputs, dim=1)
    similar = normal @ normal.T / temperature
    similar.fill_diagonal_(float("-inf"))
    partner = torch.arange(len(outputs)) ^ 1
    return functional.cross_entropy(similar, partner)


def recoloured(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation of crops (B, 3, S, S) in [0, 1] at random, some of them grey."""

    def factor() -> Tensor:
        drawn = torch.rand(len(pixels), 1, 1, 1, generator=generator)
        return 1 + COLOUR * (2 * drawn - 1)

    pixels = pixels * factor()
    middle = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = middle + (pixels - middle) * factor()
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = (pixels * weights).sum(1, keepdim=True)
    is_grey = torch.rand(len(pixels), 1, 1, 1, generator=generator) < GREY
    saturation = torch.where(is_grey, torch.zeros(()), factor())
    return (grey + (pixels - grey) * saturation).clamp(0, 1)
