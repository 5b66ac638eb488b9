"""A run folder as it was left: its settings, a row per pass, and what is damaged or missing. Reads no weights."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from labelstore.errors import LabelStoreError, RejectedInput
from labelstore.untrusted.spreadsheet_cells import from_cell
from trainer.config import TrainConfig

if TYPE_CHECKING:
    import torch

    from trainer.evaluation import Report

MAX_BYTES = 64_000_000
"""Largest file that is read whole: a million passes, or settings with as many classes."""


def read_text(path: Path) -> str:
    """A file of bounded size as text; RejectedInput where that cannot be."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise RejectedInput(f"{path} has more than {MAX_BYTES:,} bytes: it is no run's")
        return data.decode("utf-8")
    except OSError as error:
        raise RejectedInput(f"{path} cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise RejectedInput(f"{path} is damaged: no UTF-8 at byte {error.start}") from error


def read_table(path: Path, text: str, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file; RejectedInput unless it has the columns and every row is whole."""
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise RejectedInput(f"{path} is damaged: {error}") from error
    if not lines:
        raise RejectedInput(f"{path} is damaged: it is empty")
    head, *rows = lines
    missing = [name for name in needed if name not in head]
    if missing or len(set(head)) < len(head):
        raise RejectedInput(f"{path} is damaged: its first line names no column {missing[:1]}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise RejectedInput(
                f"{path} is damaged: line {number} has {len(row)} of {len(head)} values"
            )
    return [dict(zip(head, row, strict=True)) for row in rows]


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
    """Read classes.csv; None where the run wrote none, RejectedInput where it is damaged."""
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
        rows.append((from_cell(row["class"]), images, correct))
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
    evaluation = evaluate(network.to(device), images, config, device=device, report=report)
    names = config.class_names or open_images(images, keys_only=True).classes
    known = [i for i, count in enumerate(evaluation.images.tolist()) if count]
    result = ClassResult(
        names=tuple(names[i] for i in known),
        images=tuple(int(evaluation.images[i]) for i in known),
        correct=tuple(int(evaluation.correct[i]) for i in known),
        measured=True,
    )
    return result, evaluation.top1


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
    """The damage, in one line."""

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return int(self.rows[-1]["epoch"] or 0) if self.rows else 0

    @property
    def status(self) -> Status:
        """State of the run."""
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
        values = [
            (value, -int(row["epoch"] or 0))
            for row in self.rows
            if (value := row.get(name)) is not None
        ]
        if not values:
            return None
        value, epoch = max(values)
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
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise RejectedInput(f"{path} is no folder: give run folders, or a folder of them")
        if (path / "config.yaml").is_file():
            folders.append(path)
            continue
        inside = sorted(each.parent for each in path.glob("*/config.yaml") if each.is_file())
        if not inside:
            raise RejectedInput(
                f"{path} is no run folder and holds none: give folders that `trainer.run` wrote"
            )
        folders += inside
    known: dict[Path, Path] = {}
    for path in folders:
        known.setdefault(path.resolve(), path)
    return list(known.values())


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, and more of it where two are alike.

    >>> short_names([Path("a/run"), Path("b/run"), Path("b/other")])
    ['a/run', 'b/run', 'other']
    """
    parts = [path.parts or (str(path),) for path in paths]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(p[-length:] == own[-length:] for p in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; a file that cannot be read is named in `problem` and raises nothing."""
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
