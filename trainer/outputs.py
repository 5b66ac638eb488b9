"""Where a run writes: its folder, loggers, the store's catalogue. Rank 0 has them, the others have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def close(self) -> None:
        """After the last pass, or an error."""
        for logger in self.loggers:
            logger.close()


def open_outputs(
    config: TrainConfig, ranks: Ranks, note: Callable[[str], None]
) -> tuple[Outputs, Checkpoint | None]:
    """Rank 0's outputs, and on every rank the checkpoint to go on from, if there is one.

    Raises what `RunFolder.start` and the loggers raise.
    """
    opened: list[Outputs] = []

    def first() -> Checkpoint | None:
        if config.output is None:
            return None
        folder = RunFolder(config.output)
        checkpoint = folder.start(config)
        loggers = open_loggers(
            config.loggers,
            config.output,
            config.to_mapping(),
            resumed_at=0 if checkpoint is None else checkpoint.epoch,
        )
        register = RunRegister(config, note)
        opened.append(Outputs(folder=folder, loggers=loggers, register=register))
        return checkpoint

    checkpoint = ranks.on_first(first)
    return (opened[0] if opened else Outputs()), checkpoint
