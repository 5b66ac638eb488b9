"""A folder of real JPEGs and a small untrained teacher, as a run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from labelstore.labelling.crop_batches import ImageJob, TeacherBatches, TeacherPixels

CLASSES = ("bird", "cat", "dog")
OPTIONS = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_width": 8}


def write_photographs(root: Path, per_class: int = 7) -> Path:
    """Smooth random pictures of several sizes, as JPEG, one PNG that is called .jpg among them."""
    rng = np.random.default_rng(3)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            height, width = (int(x) for x in rng.integers(48, 96, 2))
            small = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            path = root / name / f"{i}.jpg"
            picture.save(path, format="PNG" if (name, i) == ("cat", 0) else "JPEG", quality=90)
    return root


def write_teacher(root: Path, *, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """A run folder as `trainer run` leaves it, with untrained weights."""
    root.mkdir(parents=True)
    torch.manual_seed(seed)
    model = timm.create_model("resnet18", num_classes=len(classes), **OPTIONS)
    torch.nn.init.normal_(model.fc.weight, std=1.0)
    save_file(model.state_dict(), root / "model.safetensors")
    config = {
        "model": "timm:resnet18",
        "model_kwargs": OPTIONS,
        "num_classes": len(classes),
        "class_names": list(classes),
        "input_size": 32,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bilinear",
        "crop_pct": 0.875,
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("data") / "photographs")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("runs") / "teacher")


def made_crops(store, images, *, num_crops, side, batch_size, workers, **changes) -> torch.Tensor:
    """What the teacher sees of every image of the store, image after image: (N * M, 3, side, side) uint8."""
    keys = store.image_columns["key"].tolist()
    batches = TeacherBatches(
        [ImageJob(image=i, key=key, path=images / key) for i, key in enumerate(keys)],
        store.planned_crops(),
        TeacherPixels(input_size=side, interpolation="bilinear", **changes),
        num_crops=num_crops,
        batch_size=batch_size,
        workers=workers,
    )
    return torch.cat([batch.pixels[: batch.size].clone() for batch in batches])
