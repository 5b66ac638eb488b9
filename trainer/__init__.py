"""Trains students from a label store.

    import trainer

    run = trainer.run(trainer.TrainConfig(data="imagenet", store="in1k.labels", labels="fkd"))

Plain torch users take `CropDataset` and `SparseSoftCrossEntropy` and keep their own loop. Names are loaded
when first used, so that importing the package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.config import TrainConfig
    from trainer.engine import Run, run
    from trainer.evaluation import Evaluation, evaluate
    from trainer.loader import CropDataset, DrawOptions, collate_crops
    from trainer.losses import SparseSoftCrossEntropy
    from trainer.models import load_run
    from trainer.timm_task import StoredLabelsTask, pack_labels

_HOMES = {
    "TrainConfig": "trainer.config",
    "Run": "trainer.engine",
    "run": "trainer.engine",
    "Evaluation": "trainer.evaluation",
    "evaluate": "trainer.evaluation",
    "CropDataset": "trainer.loader",
    "DrawOptions": "trainer.loader",
    "collate_crops": "trainer.loader",
    "SparseSoftCrossEntropy": "trainer.losses",
    "load_run": "trainer.models",
    "StoredLabelsTask": "trainer.timm_task",
    "pack_labels": "trainer.timm_task",
}

__all__ = [
    "CropDataset",
    "DrawOptions",
    "Evaluation",
    "Run",
    "SparseSoftCrossEntropy",
    "StoredLabelsTask",
    "TrainConfig",
    "collate_crops",
    "evaluate",
    "load_run",
    "pack_labels",
    "run",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
