"""One training run of the miniature, kept under its settings' digest: interrupted work adds up.

A run is named by everything that decides its outcome (the whole training config without paths, the labels' names and the
setting), so an arm that two tables share is trained once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trainer
from benchmarks.papers.setting import Setting
from benchmarks.papers.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of a table: what its students have in common."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainConfig` that differ from `Stage.student`'s."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Field of `TrainConfig` -> what the stage has to make for it: "store:main", "mask:main/low20", "run:vanilla"."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run reached."""

    top1: float
    """Percent of the val pictures."""
    train_seconds: float
    """CPU seconds of the training steps, without start-up and evaluation."""
    loss: float


def outcome(stage: Stage, arm: Arm, seed: int) -> Outcome:
    """The arm's run with that seed, trained unless its result is there."""
    kept = stage.results / f"{_digest(stage, arm, seed)}.json"
    if kept.exists():
        return Outcome(**json.loads(kept.read_text())["outcome"])
    config = stage.config(arm.options, arm.needs, seed=seed)
    clock = time.process_time()
    run = trainer.run(config)
    value = stage.measure(run, arm.options)
    found = Outcome(
        top1=value, train_seconds=time.process_time() - clock, loss=float(run.train_loss)
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    record = {"arm": arm.name, "seed": seed, "options": dict(arm.options), "needs": dict(arm.needs)}
    temporary = kept.with_suffix(".tmp")
    temporary.write_text(json.dumps({**record, "outcome": vars(found)}, default=str) + "\n")
    temporary.replace(kept)
    return found


def torch_of_one_thread() -> None:
    """One thread per process: figures must not depend on how many run side by side."""
    import torch

    torch.set_num_threads(1)


def train_one(
    setting: Setting, folders: tuple[Path, Path], arm: Arm, seed: int, deadline: float
) -> Outcome | None:
    """One run in a process of its own; None where the time was up before it began."""
    if time.time() > deadline:
        return None
    return outcome(Stage(setting, *folders), arm, seed)


def is_there(stage: Stage, arm: Arm, seed: int) -> bool:
    """True where the run's result is kept."""
    return (stage.results / f"{_digest(stage, arm, seed)}.json").exists()


def _digest(stage: Stage, arm: Arm, seed: int) -> str:
    settled = {
        "setting": stage.setting.to_record(),
        "options": dict(arm.options),
        "needs": dict(arm.needs),
        "seed": seed,
    }
    text = json.dumps(settled, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
