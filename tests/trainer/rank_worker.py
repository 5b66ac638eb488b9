"""One rank of the tests in test_ranks.py: runs the trainings listed in a file, one after the other.

rank_worker.py PLAN OUT    with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the environment
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import torch

import trainer
import trainer.between_steps
import trainer.engine
from labelstore.errors import LabelStoreError, StorageError
from trainer.loader import CropBatches
from trainer.phase_training import StudentView
from trainer.ranks import Ranks, join_ranks

RANK = os.environ.get("RANK", "0")
seen: list[list[list[int]]] = []
die_at: int | None = None
lost_at: int | None = None
end_at: int | None = None
fail_at: int | None = None
load = CropBatches.__next__
look, largest, end_pass = StudentView.__call__, Ranks.largest, trainer.engine.end_pass


def watch(self, crops, rng, **named):
    """Write down which crops this rank is shown; rank 1 may die there."""
    if len(seen) == die_at and RANK == "1":
        os._exit(9)
    m = crops.crops_per_image
    drawn = [[int(crops.images[i // m]), int(crop)] for i, crop in enumerate(crops.crops.tolist())]
    # a blank part has crops, but no images of its own
    seen.append(drawn if len(crops.images) else [])
    return look(self, crops, rng, **named)


def exchange(self, value):
    """Rank 0 may get a signal in the middle of the exchange that tells of signals: too late for its own number."""
    if len(seen) == lost_at and RANK == "0":
        signal.raise_signal(signal.SIGTERM)
    return largest(self, value)


def fetch(self):
    """Rank 1's disk may refuse to give the images of a step."""
    if len(seen) == fail_at and RANK == "1":
        raise StorageError("Stale file handle")
    return load(self)


def end(*given, **more):
    """Rank 1 may get a signal while a pass ends."""
    end_pass(*given, **more)
    if len(seen) == end_at and RANK == "1":
        signal.raise_signal(signal.SIGINT)


def train(settings: dict, out: Path) -> None:
    global die_at
    global lost_at, end_at, fail_at
    name = settings.pop("name")
    stop_at, die_at = settings.pop("stop_at", None), settings.pop("die_at", None)
    lost_at, end_at = settings.pop("lost_at", None), settings.pop("end_at", None)
    fail_at = settings.pop("fail_at", None)
    seen.clear()

    def progress(step: int, steps: int) -> None:
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)

    config = trainer.TrainConfig.from_mapping(settings)
    record: dict = {}
    try:
        run = trainer.run(config, progress=progress)
    except (KeyboardInterrupt, SystemExit) as ended:
        record["stopped"] = type(ended).__name__
        record["code"] = getattr(ended, "code", None)
    except LabelStoreError as error:
        record["error"] = f"{type(error).__name__}: {error}"
    else:
        torch.save(run.model.state_dict(), out / f"{name}.{RANK}.pth")
        record |= {"loss": run.train_loss, "top1": run.top1, "steps": run.steps}
        record["config"] = dataclasses.replace(run.config, provenance={}).to_mapping()
    record["seen"] = list(seen)
    (out / f"{name}.{RANK}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    StudentView.__call__ = watch  # type: ignore[method-assign]
    Ranks.largest = exchange  # type: ignore[method-assign]
    CropBatches.__next__ = fetch  # type: ignore[method-assign]
    # clocks of two ranks: every step of a run that asks for it is saved
    trainer.between_steps.SAVING_TAKES = 1e9
    trainer.engine.end_pass = end
    # torch has it for GPUs only; these networks have no batch norm
    trainer.engine.with_synced_batchnorm = lambda model, device: model
    plan, out = Path(sys.argv[1]), Path(sys.argv[2])
    with join_ranks():
        for settings in json.loads(plan.read_text()):
            train(settings, out)
