"""The page of some runs in one HTML file; `labelstore.report.shell` says what is in such a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstore.errors import LabelStoreError, RejectedInput, UsageError
from labelstore.report.shell import made_by, render, save
from trainer.report.run_files import (
    ClassResult,
    RunRecord,
    find_runs,
    measure,
    read_run,
    short_names,
)
from trainer.report.run_page_data import Measured, page_data

if TYPE_CHECKING:
    import torch

MAX_RUNS = 200
"""More curves hide each other."""
Progress = Callable[[int, int], None]
"""Called with images done and images in all, over all runs."""


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """A page that was written."""

    path: str
    bytes: int
    runs: int
    settings: int
    """Runs that differ in more than the seed."""
    finished: int
    unfinished: int
    damaged: tuple[str, ...]
    """One line for each run that could not be read."""
    notes: tuple[str, ...]
    """Lines on the page about missing figures."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def write_report(
    runs: Sequence[str | Path],
    path: str | Path,
    *,
    images: Path | None = None,
    model: str | None = None,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    progress: Progress | None = None,
) -> RunPage:
    """Write the report of run folders, or of all that lie in a folder, to `path`.

    With `images` every run's best weights are measured on them, and tables by class and comparisons tell of that.
    `model` is the network of those whose folders name a function that is none of this package's (see `load_run`).
    RejectedInput where no run can be read; a run that is damaged is said to be, and the others are shown.
    """
    path = Path(path)
    folders = find_runs([Path(run) for run in runs])
    if len(folders) > MAX_RUNS:
        raise UsageError(f"{len(folders)} runs: a page holds {MAX_RUNS}, give fewer")
    records = [read_run(folder) for folder in folders]
    if all(record.problem is not None for record in records):
        raise RejectedInput(str(records[0].problem))
    names = short_names([folder.resolve() for folder in folders])
    measured = None
    if images is not None:
        measured = _measure(records, images, model, device, workers, progress)
    data = page_data(records, names, measured)
    text = render(
        {**data, **made_by()},
        Path(__file__).with_name("run_page.js"),
        Path(__file__).with_name("run_page.css"),
    )
    save(text, path)
    status = [record.status for record in records]
    return RunPage(
        path=str(path),
        bytes=len(text.encode()),
        runs=len(records),
        settings=len(data["settings"]),
        finished=status.count("finished"),
        unfinished=status.count("unfinished") + status.count("not begun"),
        damaged=tuple(record.problem for record in records if record.problem is not None),
        notes=tuple(data["notes"]),
    )


def _measure(
    records: list[RunRecord],
    images: Path,
    model: str | None,
    device: torch.device | str,
    workers: int | None,
    progress: Progress | None,
) -> Measured:
    """Every run's best weights on the images; a run without usable weights is damaged from here on."""
    from dataclasses import replace

    from labelstore.images import open_images

    # what is wrong with the images is wrong for all runs
    own = len(open_images(images, keys_only=True))
    top1: dict[int, float] = {}
    classes: dict[int, ClassResult] = {}
    wanted = [n for n, record in enumerate(records) if record.problem is None and record.rows]
    for turn, number in enumerate(wanted):
        record = records[number]
        report = None if progress is None else _shifted(progress, turn * own, len(wanted) * own)
        try:
            classes[number], top1[number] = measure(
                record.folder, images, model=model, device=device, workers=workers, report=report
            )
        except LabelStoreError as error:
            records[number] = replace(record, problem=str(error))
    if not top1:
        raise RejectedInput(
            next(
                (r.problem for r in records if r.problem),
                f"no run has weights to measure on {images}",
            )
        )
    return Measured(images=images.name, top1=top1, classes=classes)


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)
