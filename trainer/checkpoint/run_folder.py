"""A run's folder, laid out like timm's.

config.yaml          every setting, class names and provenance: enough to use the folder as a teacher
summary.csv          one row per pass
classes.csv          images and hits of every class at the best top-1
log.txt              what was printed
last.pth.tar         checkpoint to continue from; previous.pth.tar is that of the pass before
model_best.pth.tar   checkpoint of the best top-1
model.safetensors    its weights
model_ema.safetensors   moving average of the weights at its own best top-1, of a run with ema_decay
tensorboard/         with loggers=tensorboard
in-use.lock          while a run writes here
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.durable import check_new_place, make_folders, storage_errors, write_file
from labelstore.errors import ConflictError, RejectedInput, StorageError
from labelstore.untrusted.spreadsheet_cells import no_formula
from labelstore.untrusted.yaml_files import read_mapping
from trainer.checkpoint.files import (
    Checkpoint,
    checkpoint_bytes,
    read_checkpoint,
    save_checkpoint,
    weights_file,
)
from trainer.config import NOT_WRITTEN, Autocast, MayDiffer, TrainConfig
from trainer.folder_lock import FolderLock
from trainer.models import BEST, LAST, WEIGHTS, WEIGHTS_EMA

PREVIOUS = "previous.pth.tar"
CLASSES = "classes.csv"
FILES = ("config.yaml", "summary.csv", CLASSES, "log.txt", BEST, WEIGHTS, WEIGHTS_EMA)
"""Names that a run gives its files, beside those of its checkpoints."""
CLASS_COLUMNS = ("class", "images", "correct", "correct5")


class RunFolder:
    """One run on disk. Only rank 0 makes one; nothing is written before `start`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: TrainConfig | None = None
        """Settings that the run goes on with; None before `start`."""
        self.notes: tuple[str, ...] = ()
        """Changes since the run began, a line each."""
        self._keeps_last = True
        self._lock: FolderLock | None = None

    def lock(self, note: Callable[[str], None] = lambda message: None) -> None:
        """Make the folder and keep other runs out of it until `close`.

        ConflictError that names process and host of a run that is at work in it. UsageError in a store.
        """
        self._check_place()
        make_folders(self.path)
        with storage_errors(self.path):
            self._lock = FolderLock(self.path, "a run", note)

    def close(self) -> None:
        """Let other runs into the folder."""
        if self._lock is not None:
            self._lock.release()

    @property
    def holds_run(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return any((self.path / name).is_file() for name in (LAST, PREVIOUS))

    def start(self, config: TrainConfig) -> Checkpoint | None:
        """Make the folder and its config.yaml; with `config.resume`, the checkpoint to continue from, if any.

        Raises as `check`.
        """
        checkpoint, config, self.notes = self.check(config)
        if checkpoint is not None:
            self._keeps_last = checkpoint.is_whole_pass
        make_folders(self.path)
        self.write_config(config)
        return checkpoint

    def check(self, config: TrainConfig) -> tuple[Checkpoint | None, TrainConfig, tuple[str, ...]]:
        """What `start` begins with: the checkpoint, the settings that the run goes on with, and what changed.

        ConflictError if it holds a run and `resume` is off, if that run had other settings, or if files with a run's
        names are there that no run wrote. UsageError in a store, RejectedInput if its last checkpoint is damaged.
        """
        self._check_place()
        if self.holds_run and not config.resume:
            raise ConflictError(
                f"{self.path} holds a run already: resume it, or give another output folder"
            )
        if not self.holds_run:
            self._refuse_others()
        checkpoint = self._last() if self.holds_run else None
        if checkpoint is None:
            return None, config, ()
        return checkpoint, *going_on(config, checkpoint, self.path)

    def write_config(self, config: TrainConfig) -> None:
        """(Re)write config.yaml."""
        self.config = config
        write_file(self.path / "config.yaml", config.to_yaml().encode())

    def save(self, checkpoint: Checkpoint, *, best: bool = False, best_ema: bool = False) -> None:
        """Write last.pth.tar and, with `best`, model_best.pth.tar and model.safetensors.

        `best_ema` writes the averaged weights beside them. The last checkpoint of a whole pass before becomes
        previous.pth.tar; those inside a pass replace each other.
        """
        if best_ema:
            write_file(self.path / WEIGHTS_EMA, weights_file(checkpoint, ema=True))
        if best:
            # before the last checkpoint: killed in between, the run repeats these steps and writes them again
            write_file(self.path / BEST, checkpoint_bytes(checkpoint))
            write_file(self.path / WEIGHTS, weights_file(checkpoint))
        previous = self.path / PREVIOUS if self._keeps_last else None
        save_checkpoint(self.path / LAST, checkpoint, previous=previous)
        self._keeps_last = checkpoint.is_whole_pass

    def add_summary(self, row: Mapping[str, float | int | str | None]) -> None:
        """Append a row to summary.csv; its first column counts up, and rows from it on are replaced.

        (A resumed run repeats the passes after its checkpoint.)
        """
        path = self.path / "summary.csv"
        first = next(iter(row))
        rows: list[Mapping[str, object]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [
                    old
                    for old in csv.DictReader(file)
                    if float(old[first]) < float(str(row[first]))
                ]
        columns = list(dict.fromkeys(name for each in (*rows, row) for name in each))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])
        write_file(path, text.getvalue().encode())

    def save_classes(
        self,
        names: Sequence[str],
        images: NDArray[np.int64],
        correct: NDArray[np.int64],
        correct5: NDArray[np.int64],
    ) -> None:
        """Write classes.csv: of every class its images and how many of them were right, and among the first five.

        `names` may be empty: then classes have their numbers. It belongs to the weights that `save` calls best.
        """
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CLASS_COLUMNS)
        counts = np.stack([images, correct, correct5], axis=1).tolist()
        named = names or range(len(counts))
        writer.writerows(
            [no_formula(str(name)), *row] for name, row in zip(named, counts, strict=True)
        )
        write_file(self.path / CLASSES, text.getvalue().encode())

    def log(self, line: str) -> None:
        """Append a line to log.txt, with the time (UTC)."""
        path = self.path / "log.txt"
        now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{now} {line}\n")
        except OSError as error:
            raise StorageError(f"{path} cannot be written ({error.strerror or error})") from error

    def _check_place(self) -> None:
        check_new_place(self.path, "output")
        check_new_place(self.path / "config.yaml", "output")  # the folder is no file

    def _refuse_others(self) -> None:
        """ConflictError for files that a run would overwrite, unless they are of one that was stopped early."""
        there = [name for name in FILES if (self.path / name).exists()]
        # what a run writes first says where its labels come from
        if there and not _has_provenance(self.path / "config.yaml"):
            raise ConflictError(
                f"{self.path} holds {there[0]}, which is of no run, and a run would overwrite it: give another output "
                "folder, or move it away"
            )

    def _last(self) -> Checkpoint:
        last, previous = self.path / LAST, self.path / PREVIOUS
        # on a disk without hard links a kill can fall between two renames
        if not last.is_file():
            return read_checkpoint(previous)
        try:
            return read_checkpoint(last)
        except RejectedInput as error:
            if not previous.is_file():
                raise
            raise RejectedInput(
                f"{error}: to continue from the checkpoint before it, remove it ({PREVIOUS} is there)"
            ) from error


def _has_provenance(path: Path) -> bool:
    try:
        return "provenance" in read_mapping(path)
    except RejectedInput:
        return False


_OLDER = {
    "labels_made_at": "which took labels made at any temperature for labels at T=1",
    "drawing_order": "which drew crops in another order, where an image could show one crop twice in a batch",
}
"""Entry of the provenance -> how runs that did not write it down differ."""


def going_on(
    config: TrainConfig, checkpoint: Checkpoint, path: Path
) -> tuple[TrainConfig, tuple[str, ...]]:
    """The config that a run goes on with, and a line on each thing that is not as at its beginning.

    What `amp="auto"` chose stays, whatever the device is now. What `may_differ` allows to be different is added to the
    provenance, as `changed`, with the step.

    ConflictError names a setting that is different and not allowed to be, or other data.
    """
    before = TrainConfig.from_mapping(checkpoint.config)
    allowed = [name for name in config.differences(before) if name in config.may_differ]
    _check_same(config, before, path)
    changes: dict[str, Any] = {
        name: [getattr(before, name), getattr(config, name)] for name in allowed
    }
    notes = [
        f"from step {checkpoint.step} on with {name}={now!r}, before {was!r}"
        for name, (was, now) in changes.items()
    ]
    provenance = dict(config.provenance)
    was, now = before.provenance.get("amp"), provenance.get("amp")
    if config.amp == before.amp == "auto" and was in get_args(Autocast) and was != now:
        if "amp" in config.may_differ:
            changes["autocast"] = [was, now]
            notes.append(f"from step {checkpoint.step} on with amp {now}, before {was}")
        else:
            provenance["amp"] = was
            notes.append(
                f"amp stays {was}, which it was when the run began; {now} is this device's own: `may_differ=amp` "
                "takes it"
            )
    kept = before.provenance.get("changed")
    history = list(kept) if isinstance(kept, (list, tuple)) else []
    if changes:
        history.append({"step": checkpoint.step, **changes})
    if history:
        provenance["changed"] = history
    return dataclasses.replace(config, provenance=provenance, may_differ=()), tuple(notes)


def _check_same(config: TrainConfig, before: TrainConfig, path: Path) -> None:
    changed = [name for name in config.differences(before) if name not in config.may_differ]
    if not changed:
        return
    name = changed[0]
    _, of_data, entry = name.partition("provenance.")
    if of_data and entry in NOT_WRITTEN and entry not in before.provenance:
        raise ConflictError(
            f"{path} was begun by an older trainer, {_OLDER[entry]}: finish it with that version, or give another "
            "output folder"
        )
    if of_data:
        was, now = (_short({**NOT_WRITTEN, **each.provenance}[entry]) for each in (before, config))
        raise ConflictError(
            f"{path} began with other data ({entry} {was}, now {now}): resume with what it was trained on,"
            " or give another output folder"
        )
    allow = f", or allow it with `may_differ={name}`" if name in get_args(MayDiffer) else ""
    raise ConflictError(
        f"{path} was trained with {name}={getattr(before, name)!r}, now {getattr(config, name)!r}:"
        f" resume with the same settings{allow}, or give another output folder"
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"
