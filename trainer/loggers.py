"""Where a run's rows go: summary.csv always, TensorBoard and Weights & Biases on request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from labelstore.errors import UsageError

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
