"""Runs of a small student on a few photographs: their pictures, their labels, their settings."""

from __future__ import annotations

from pathlib import Path

from labelstore import Full, MarginalSmoothing
from tests.flat_options import label_images
from tests.generation.conftest import OPTIONS, write_photographs, write_teacher
from trainer import TrainConfig


def write_data(root: Path, train: int = 7, val: int = 2) -> Path:
    """So many photographs of each of three classes to learn from, and to judge by."""
    for split, number in (("train", train), ("val", val)):
        write_photographs(root / split, per_class=number)
    return root


def label_twice(path: Path, images: Path, num_crops: int) -> Path:
    """A store of a teacher's labels, as `full` and as `ms`."""
    teacher = write_teacher(path.with_name("teacher"))
    for name, codec in {"full": Full(dtype="float32"), "ms": MarginalSmoothing(k=2)}.items():
        label_images(
            path, images=images, teacher=str(teacher), codec=codec, num_crops=num_crops,
            images_per_shard=8, name=name, device="cpu",
        )  # fmt: skip
    return path


def small_run(settings: dict[str, object], **more: object) -> TrainConfig:
    """A student of some thousand weights; 4 images in a step, and two crops of each."""
    small = {
        "model": "resnet18", "model_kwargs": OPTIONS, "input_size": 32, "batch_size": 8, "crops_per_image": 2,
        "lr": 0.05, "device": "cpu", "workers": 1,
    }  # fmt: skip
    return TrainConfig(**{**small, **more, **settings})
