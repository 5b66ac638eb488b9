"""Where a run writes: its folder, loggers, the store's catalogue. Rank 0 has them, the others have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from trainer.checkpoint import Checkpoint, RunFolder
from trainer.config import TrainConfig
from trainer.loggers import Logger, open_loggers
from trainer.ranks import Ranks
from trainer.registration import RunRegister


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Everything that a run writes to; all of it may be missing."""

    folder: RunFolder | None = None
    loggers: Sequence[Logger] = ()
    register: RunRegister | None = None

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
