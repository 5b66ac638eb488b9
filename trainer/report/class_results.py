"""Accuracy by class: as a run recorded it at its best top-1, or measured now with its best weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labelstore.errors import RejectedInput
from trainer.report.text_files import read_table, read_text

if TYPE_CHECKING:
    import torch

    from trainer.evaluation import Report

COLUMNS = ("class", "images", "correct", "correct5")


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """Images and hits of every class that has images."""

    names: tuple[str, ...]
    images: tuple[int, ...]
    correct: tuple[int, ...]
    """Images whose class has the largest logit."""
    measured: bool = False
    """Now, and not by the run."""


def read_classes(folder: Path) -> ClassResult | None:
    """What classes.csv says; None where the run wrote none, RejectedInput where it is damaged."""
    path = folder / "classes.csv"
    if not path.is_file():
        return None
    rows = []
    for line, row in enumerate(read_table(path, read_text(path), COLUMNS), 2):
        try:
            images, correct = int(row["images"]), int(row["correct"])
        except ValueError:
            images = correct = -1
        if not 0 <= correct <= images <= 10**12:
            raise RejectedInput(f"{path} is damaged: line {line} holds no counts")
        rows.append((row["class"], images, correct))
    known = [row for row in rows if row[1]]
    return ClassResult(
        names=tuple(name for name, _, _ in known),
        images=tuple(images for _, images, _ in known),
        correct=tuple(correct for _, _, correct in known),
    )


def measure(
    folder: Path,
    images: Path,
    *,
    model: str | None = None,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    report: Report | None = None,
) -> tuple[ClassResult, float]:
    """Results by class of a run's best weights on images, and its top-1 in percent over all of them.

    `model` is its network where the folder names a function that is none of this package's. Raises what `load_run`
    and `evaluate` raise.
    """
    import dataclasses

    from labelstore.images import open_images
    from trainer.evaluation import evaluate
    from trainer.models import load_run, names_foreign_code, read_run_config

    foreign = names_foreign_code(read_run_config(folder))
    network, config = load_run(folder, model=model if foreign else None)
    if workers is not None:
        config = dataclasses.replace(config, workers=workers)
    found = evaluate(network.to(device), images, config, device=device, report=report)
    names = config.class_names or open_images(images, keys_only=True).classes
    known = [i for i, count in enumerate(found.images.tolist()) if count]
    result = ClassResult(
        names=tuple(names[i] for i in known),
        images=tuple(int(found.images[i]) for i in known),
        correct=tuple(int(found.correct[i]) for i in known),
        measured=True,
    )
    return result, found.top1
