"""A run folder as it was left: its settings, a row per pass, and what is damaged or missing. Reads no weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labelstore.errors import LabelStoreError, RejectedInput
from trainer.config import TrainConfig
from trainer.report.class_results import ClassResult, read_classes
from trainer.report.text_files import read_table, read_text

FIGURES = (
    "epoch", "crops_seen", "step", "lr", "train_loss", "eval_loss", "eval_top1", "eval_top5",
    "ema_loss", "ema_top1", "ema_top5", "seconds", "phase",
)  # fmt: skip
"""Columns of summary.csv that are looked at."""
MOST = 1e18
"""Larger figures are none."""
Row = dict[str, float | None]
Status = Literal["finished", "unfinished", "not begun", "damaged"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run folder."""

    folder: Path
    config: TrainConfig | None
    """None where it cannot be read."""
    rows: tuple[Row, ...] = ()
    """One per pass; None where a pass has no such figure, or it is not finite."""
    classes: ClassResult | None = None
    """Per class at the best top-1, as the run recorded it."""
    problem: str | None = None
    """What is damaged, in one line."""

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return int(self.rows[-1]["epoch"] or 0) if self.rows else 0

    @property
    def status(self) -> Status:
        """How far it is."""
        if self.problem is not None or self.config is None:
            return "damaged"
        if self.epochs >= self.config.whole_epochs:
            return "finished"
        return "unfinished" if self.rows else "not begun"

    def last(self, name: str) -> float | None:
        """A figure after the last pass that has it; None where none has."""
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)

    def best(self, name: str) -> tuple[float, int] | None:
        """Largest value of a figure, and the epoch of the first pass that reached it."""
        found = [
            (value, -int(row["epoch"] or 0))
            for row in self.rows
            if (value := row.get(name)) is not None
        ]
        if not found:
            return None
        value, epoch = max(found)
        return value, -epoch

    @property
    def seconds(self) -> float | None:
        """Seconds of all passes without evaluation; None where a pass does not say."""
        values = [row.get("seconds") for row in self.rows]
        known = [value for value in values if value is not None]
        return math.fsum(known) if known and len(known) == len(values) else None


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run folders: those given, and those right inside a folder that is none itself.

    RejectedInput for a path where there is no run.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise RejectedInput(f"{path} is no folder: give run folders, or a folder of them")
        if (path / "config.yaml").is_file():
            found.append(path)
            continue
        inside = sorted(each.parent for each in path.glob("*/config.yaml") if each.is_file())
        if not inside:
            raise RejectedInput(
                f"{path} is no run folder and holds none: give folders that `trainer.run` wrote"
            )
        found += inside
    known: dict[Path, Path] = {}
    for path in found:
        known.setdefault(path.resolve(), path)
    return list(known.values())


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, and more of it where two are alike.

    >>> short_names([Path("a/run"), Path("b/run"), Path("b/other")])
    ['a/run', 'b/run', 'other']
    """
    parts = [path.parts or (str(path),) for path in paths]
    found = []
    for own in parts:
        length = 1
        while length < len(own) and sum(p[-length:] == own[-length:] for p in parts) > 1:
            length += 1
        found.append("/".join(own[-length:]))
    return found


def read_run(folder: Path) -> RunRecord:
    """What a run folder says; what cannot be read is named in `problem` and raises nothing."""
    config: TrainConfig | None = None
    rows: tuple[Row, ...] = ()
    classes = None
    try:
        config = TrainConfig.from_yaml(folder / "config.yaml")
        rows = _rows(folder / "summary.csv")
        classes = read_classes(folder)
    except LabelStoreError as error:
        return RunRecord(folder=folder, config=config, rows=rows, problem=str(error))
    return RunRecord(folder=folder, config=config, rows=rows, classes=classes)


def _rows(path: Path) -> tuple[Row, ...]:
    """Rows of summary.csv in order; nothing where the first pass has not ended."""
    if not path.is_file():
        return ()
    table = read_table(path, read_text(path), ("epoch", "train_loss"))
    rows: list[Row] = []
    for number, line in enumerate(table, 2):
        row = {name: _number(path, number, name, line.get(name, "")) for name in FIGURES}
        epoch = row["epoch"]
        if epoch is None or not (rows[-1]["epoch"] or 0 if rows else 0) < epoch < 1e9:
            raise RejectedInput(
                f"{path} is damaged: epoch {line['epoch'][:20]!r} in line {number} does not count up"
            )
        rows.append(row)
    return tuple(rows)


def _number(path: Path, line: int, name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise RejectedInput(
            f"{path} is damaged: {name} {text[:20]!r} in line {line} is no number"
        ) from None
    # NaN too
    return value if abs(value) < MOST else None
