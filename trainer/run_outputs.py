"""The outputs of a run: its folder, loggers, a row and results in the store's catalogue.

Rank 0 has them, the others have none. A training never fails for the catalogue: what goes wrong is noted once, and
nothing more is written.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import labelstore
from labelstore.catalogue.records import ResultRow, RunRow
from labelstore.errors import LabelStoreError, UsageError, check_utf8
from trainer.checkpoint import Checkpoint, RunFolder
from trainer.config import TrainConfig
from trainer.config_checks import learns_from_store, split_names
from trainer.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Everything that a run writes to; all of it may be missing."""

    folder: RunFolder | None = None
    loggers: Sequence[Logger] = ()
    register: RunRegister | None = None
    evaluated: Callable[[int, int], None] | None = None
    """Told of the images done and in all, during an evaluation."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint to go on from."""
        if self.folder is not None:
            self.folder.save(checkpoint)

    def say(self, line: str, note: Callable[[str], None]) -> None:
        """Tell the user, and write it to log.txt."""
        note(line)
        self.log(line)

    def log(self, line: str) -> None:
        """Write it to log.txt only."""
        if self.folder is not None:
            self.folder.log(line)

    def close(self) -> None:
        """After the last pass, or an error."""
        try:
            for logger in self.loggers:
                logger.close()
        finally:
            if self.folder is not None:
                self.folder.close()


def open_outputs(
    config: TrainConfig, ranks: Ranks, note: Callable[[str], None]
) -> tuple[Outputs, Checkpoint | None, TrainConfig]:
    """Rank 0's outputs, and on every rank the checkpoint to go on from, if there is one, and the config to go on with.

    The folder is this run's until the outputs are closed. Raises what `RunFolder` and the loggers raise.
    """
    opened: list[Outputs] = []

    def first() -> tuple[Checkpoint | None, TrainConfig]:
        if config.output is None:
            return None, config
        folder = RunFolder(config.output)
        # before anything is read: what a run at work has written is not yet the whole of it
        folder.lock(note)
        undone.callback(folder.close)
        checkpoint = folder.start(config)
        kept = folder.config or config
        loggers = open_loggers(
            config.loggers,
            config.output,
            kept.to_mapping(),
            resumed_at=0 if checkpoint is None else _reported(checkpoint),
        )
        register = RunRegister(kept, note)
        opened.append(Outputs(folder=folder, loggers=loggers, register=register))
        for line in folder.notes:
            opened[0].say(line, note)
        return checkpoint, kept

    with ExitStack() as undone:
        checkpoint, kept = ranks.on_first(first)
        undone.pop_all()
    return (opened[0] if opened else Outputs()), checkpoint, kept


def _reported(checkpoint: Checkpoint) -> int:
    """Epochs whose rows are written."""
    return checkpoint.epoch if checkpoint.owed is None else int(checkpoint.owed["begun"])


Row = Mapping[str, float | int | str | None]


class Logger(Protocol):
    """Takes one row per pass; a resumed run repeats the passes after its checkpoint."""

    def add(self, row: Row) -> None:
        """One pass; `row["epoch"]` counts up."""

    def close(self) -> None:
        """After the last row."""


class TensorBoardLogger:
    """Scalars in `folder`, one per column, over crops seen in epochs."""

    def __init__(self, folder: Path, *, resumed_at: int) -> None:
        """`resumed_at` is the first epoch whose rows are repeated. UsageError without the package."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "loggers=tensorboard needs the package: pip install 'labelstore[tensorboard]'"
            ) from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=resumed_at + 1)

    def add(self, row: Row) -> None:
        """One pass."""
        for name, value in _figures(row).items():
            self._writer.add_scalar(name, value, global_step=row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


class WandbLogger:
    """One run at Weights & Biases; project and account come from its own environment variables and login."""

    def __init__(self, folder: Path, config: Mapping[str, Any], *, resumed_at: int) -> None:
        """The same folder is the same run, also after a stop. UsageError without the package."""
        try:
            import wandb  # type: ignore[import-not-found,unused-ignore]  # an extra
        except ImportError as error:
            raise UsageError(
                "loggers=wandb needs the package: pip install 'labelstore[wandb]'"
            ) from error
        where = str(folder.resolve())
        self._run: Any = wandb.init(
            id=hashlib.sha256(where.encode()).hexdigest()[:16],
            name=folder.name,
            dir=where,
            config=dict(config),
            resume="allow" if resumed_at else None,
        )

    def add(self, row: Row) -> None:
        """One pass."""
        self._run.log(_figures(row), step=row["epoch"])

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def open_loggers(
    names: Sequence[str], folder: Path, config: Mapping[str, Any], *, resumed_at: int
) -> list[Logger]:
    """The loggers asked for; `resumed_at` is how many epochs were done before, 0 for a new run."""
    loggers: list[Logger] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(folder / "tensorboard", resumed_at=resumed_at))
        else:
            loggers.append(WandbLogger(folder, config, resumed_at=resumed_at))
    return loggers


def _figures(row: Row) -> dict[str, float]:
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, (int, float)) and name != "epoch"
    }


Note = Callable[[str], None]


class RunRegister:
    """Writes one run's figures; silent where the store is read-only or there is none."""

    def __init__(self, config: TrainConfig, note: Note = lambda message: None) -> None:
        """Add the run, or find it again; the same folder with the same settings is the same run."""
        self._note, self._name, self._store = note, "", None
        if config.store is None or config.output is None:
            return
        try:
            store = labelstore.open(config.store)
            if store.catalogue.readonly:
                return
            folder = str(config.output.resolve())
            check_utf8(folder)
            self._name = run_name(config)
            store.catalogue.runs.add(
                RunRow(
                    name=self._name,
                    folder=folder,
                    label_sets=_learnt_from(config, store.label_sets),
                    masks=_each_once(split_names(each.mask) for each in config.of_phases()),
                    config=_at_the_beginning(config),
                    started=time.time(),
                )
            )
            self._store = store
        except (LabelStoreError, OSError) as error:
            self._note(f"this run is not listed in the store: {error}")

    def add(self, epoch: int, figures: Mapping[str, float | None]) -> None:
        """Figures by name, after that many epochs; None is left out."""
        if self._store is None:
            return
        try:
            for name, value in figures.items():
                if value is not None:
                    self._store.catalogue.results.add(
                        ResultRow(run=self._name, name=name, epoch=epoch, value=float(value))
                    )
        except (LabelStoreError, OSError) as error:
            self._note(f"results are not listed in the store any more: {error}")
            self._store = None


def _learnt_from(config: TrainConfig, label_sets: tuple[str, ...]) -> tuple[str, ...]:
    """Label sets that this run's epochs count for: none where only their crops are used."""
    return _each_once(
        split_names(each.label_set) or label_sets[:1]
        for each in config.of_phases()
        if learns_from_store(each)
    )


def _each_once(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for some in names for name in some))


def _at_the_beginning(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the run, with the first value of one that was allowed to differ (`may_differ`)."""
    decisive = config.decisive()
    for change in reversed(config.provenance.get("changed", ())):
        decisive |= {name: pair[0] for name, pair in change.items() if name in decisive}
    return decisive


def run_name(config: TrainConfig) -> str:
    """The run folder's name with a digest of where it is and of what decides the run."""
    assert config.output is not None
    folder = Path(config.output).resolve()
    text = json.dumps([str(folder), _at_the_beginning(config)], sort_keys=True)
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", folder.name).lstrip("._-") or "run"
    return f"{plain[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
