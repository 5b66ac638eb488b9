"""One training run of the miniature, kept under its settings' digest: interrupted work adds up.

A run is named by everything that decides its outcome (the whole training config without paths, the labels' names and the
setting), so an arm that two tables share is trained once.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import trainer
from benchmarks.machine import commit
from benchmarks.papers.stage import Stage
from trainer.config import TrainConfig

ENVIRONMENT = "environment.txt"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of a table: what its students have in common."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainConfig` that differ from `Stage.student`'s."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Field of `TrainConfig` -> what the stage has to make for it: "store:main", "mask:main/low20", "run:vanilla"."""

    def waits_for(self) -> str | None:
        """Why the arm cannot be trained yet: a field that `TrainConfig` does not have; None where it can."""
        known = {field.name for field in fields(TrainConfig)}
        missing = sorted({*self.options, *self.needs} - known)
        return f"skipped: the trainer has no {', '.join(missing)} yet" if missing else None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run reached."""

    top1: float
    """Percent of the val pictures."""
    train_seconds: float
    """CPU seconds of the training steps, without start-up and evaluation."""
    loss: float
    figures: Mapping[str, float] = field(default_factory=dict)
    """What else was measured of the student."""

    def figure(self, name: str) -> float:
        """A field, or one of `figures`."""
        return float(self.figures[name] if name in self.figures else getattr(self, name))


def outcome(stage: Stage, arm: Arm, seed: int) -> Outcome:
    """The arm's run with that seed, trained unless its result is there."""
    kept = stage.results / f"{_digest(stage, arm, seed)}.json"
    if kept.exists():
        return Outcome(**json.loads(kept.read_text())["outcome"])
    config = stage.config(arm.options, arm.needs, seed=seed)
    clock = time.process_time()
    run = trainer.run(config)
    top1, figures = stage.measure(run, arm.options)
    found = Outcome(
        top1=top1,
        train_seconds=time.process_time() - clock,
        loss=float(run.train_loss),
        figures=figures,
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


def train_one(stage: Stage, arm: Arm, seed: int, deadline: float) -> Outcome | None:
    """One run in a process of its own; None where the time was up before it began."""
    if time.time() > deadline:
        return None
    return outcome(stage, arm, seed)


def record_environment(stage: Stage) -> None:
    """Keep beside the results when and with what they were last added to."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "labelstore"))
    text = (
        f"trained until {datetime.now(UTC).date().isoformat()}, commit {commit()}, {os.cpu_count()} cores, "
        f"{platform.machine()}, no GPU, {versions}"
    )
    stage.results.mkdir(parents=True, exist_ok=True)
    (stage.results / ENVIRONMENT).write_text(text + "\n")


def environment(stage: Stage) -> str:
    """What `record_environment` kept."""
    kept = stage.results / ENVIRONMENT
    return kept.read_text().strip() if kept.exists() else "no run is finished"


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
