"""The page of some runs as JSON values; every missing figure is said to be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from labelstore.images.class_names import readable
from trainer.config import TrainConfig, evaluation_split
from trainer.report.compared_settings import (
    Setting,
    common,
    differing,
    group_runs,
    interval,
    paired_difference,
)
from trainer.report.run_files import ClassResult, RunRecord

POINTS = 1_000
"""Passes of a curve: longer ones are thinned out."""
PAIRED_SETTINGS = 24
"""Settings of which every two are compared; of more, each with the first."""
CLASS_CELLS = 400_000
"""Classes x settings of the table by class."""
NAMED = 5
"""Runs that a note names."""
CURVES = ("step", "lr", "train_loss", "eval_loss", "eval_top1", "eval_top5", "ema_top1", "phase")
METRICS = {
    "top1": "top-1 after the last pass",
    "best": "best top-1",
    "measured": "top-1 measured for this page",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures measured for the page, by number of the run."""

    images: str
    """Name of the images that they were measured on."""
    top1: Mapping[int, float]
    classes: Mapping[int, ClassResult]


def page_data(
    records: Sequence[RunRecord], names: Sequence[str], measured: Measured | None
) -> dict[str, Any]:
    """Everything on the page but its date; `names` are how runs are called there."""
    configs = {
        number: record.config
        for number, record in enumerate(records)
        if record.config is not None and record.problem is None
    }
    settings = group_runs(configs, names)
    setting_of = {number: at for at, setting in enumerate(settings) for number in setting.runs}
    runs = [
        _run(record, names[number], setting_of.get(number))
        | {"measured": None if measured is None else measured.top1.get(number)}
        for number, record in enumerate(records)
    ]
    values = {metric: _values(metric, settings, runs) for metric in METRICS}
    apart = differing(settings)
    classes, refused = _classes(records, settings, measured)
    return {
        "runs": runs,
        "settings": [
            {
                "name": setting.name,
                "runs": list(setting.runs),
                "values": [setting.values.get(name) for name in apart],
                "results": {
                    metric: _result([v for row in found[at].values() for v in row])
                    for metric, found in values.items()
                },
            }
            for at, setting in enumerate(settings)
        ],
        "differing": apart,
        "common": common(settings),
        "metrics": {name: words for name, words in METRICS.items() if any(values[name])},
        "pairs": {metric: _pairs(found) for metric, found in values.items()},
        "classes": classes,
        "classes_refused": refused,
        "images": None if measured is None else measured.images,
        "notes": _notes(records, names, configs, measured),
    }


def _run(record: RunRecord, name: str, setting: int | None) -> dict[str, Any]:
    config, best, averaged = record.config, record.best("eval_top1"), record.best("ema_top1")
    crops, seconds = record.last("crops_seen"), record.seconds
    # the first and the last pass are always shown
    step = max(1, -(-len(record.rows) // POINTS))
    shown = [row for at, row in enumerate(reversed(record.rows)) if at % step == 0][::-1]
    return {
        "name": name,
        "setting": setting,
        "status": record.status,
        "problem": record.problem,
        "seed": None if config is None else config.seed,
        "labels": None if config is None else _labels(config),
        "phases": [] if config is None else [str(phase) for phase in config.phases],
        "model": None if config is None else config.model,
        "crops_per_image": None if config is None else config.crops_per_image,
        "epochs": record.epochs,
        "of": None if config is None else config.whole_epochs,
        "top1": record.last("eval_top1"),
        "top5": record.last("eval_top5"),
        "best": best and best[0],
        "best_epoch": best and best[1],
        "ema": averaged and averaged[0],
        "loss": record.last("train_loss"),
        "seconds": seconds,
        "crops": crops,
        "rate": crops / seconds if crops and seconds and seconds > 1e-3 else None,
        "thinned": len(record.rows) if step > 1 else None,
        "curves": {
            "epoch": [row["epoch"] for row in shown],
            **{
                column: [row.get(column) for row in shown]
                for column in CURVES
                if any(row.get(column) is not None for row in shown)
            },
        },
    }


def _labels(config: TrainConfig) -> str:
    """Labels of a run, phase by phase."""
    return ", ".join(map(str, config.phases)) or config.labels


def _values(
    metric: str, settings: Sequence[Setting], runs: Sequence[Mapping[str, Any]]
) -> list[dict[int, list[float]]]:
    """Results of the finished runs of each setting, by seed."""
    found: list[dict[int, list[float]]] = []
    for setting in settings:
        of_seed: dict[int, list[float]] = {}
        for number in setting.runs:
            run = runs[number]
            if run["status"] == "finished" and run[metric] is not None:
                of_seed.setdefault(run["seed"], []).append(run[metric])
        found.append(of_seed)
    return found


def _result(values: Sequence[float]) -> dict[str, Any]:
    return {
        "runs": len(values),
        "mean": fmean(values) if values else None,
        "ci95": interval(values),
        "values": list(values),
    }


def _pairs(values: Sequence[Mapping[int, Sequence[float]]]) -> list[dict[str, Any]]:
    if len(values) <= PAIRED_SETTINGS:
        wanted = list(combinations(range(len(values)), 2))
    else:
        wanted = [(0, other) for other in range(1, len(values))]
    differences = [paired_difference(first, second, values) for first, second in wanted]
    return [pair.to_record() for pair in differences if pair is not None]


def _classes(
    records: Sequence[RunRecord], settings: Sequence[Setting], measured: Measured | None
) -> tuple[dict[str, Any] | None, str | None]:
    """Images and hits by class and setting, summed over its runs; or why there are none."""
    results = {
        number: record.classes if measured is None else measured.classes.get(number)
        for number, record in enumerate(records)
    }
    of_setting: list[dict[str, list[int]]] = []
    for setting in settings:
        sums: dict[str, list[int]] = {}
        for number in setting.runs:
            found = results[number]
            if found is not None:
                for name, images, correct in zip(
                    found.names, found.images, found.correct, strict=True
                ):
                    own = sums.setdefault(name, [0, 0])
                    own[0] += images
                    own[1] += correct
        of_setting.append(sums)
    names = list(dict.fromkeys(name for sums in of_setting for name in sums))
    if not names:
        return None, "No run recorded results by class: give images to measure them on."
    if len(names) * len(settings) > CLASS_CELLS:
        return None, (
            f"{len(names):,} classes x {len(settings)} settings are more than a page holds: give fewer runs."
        )
    return {
        "names": [readable(name) for name in names],
        "images": [[sums.get(name, (0, 0))[0] for name in names] for sums in of_setting],
        "correct": [[sums.get(name, (0, 0))[1] for name in names] for sums in of_setting],
        "measured": measured is not None,
    }, None


def _notes(
    records: Sequence[RunRecord],
    names: Sequence[str],
    configs: Mapping[int, TrainConfig],
    measured: Measured | None,
) -> list[str]:
    """Lines about runs that are damaged, incomplete or not comparable."""

    def some(numbers: Sequence[int]) -> str:
        if len(numbers) == len(records) > 1:
            return f"all {len(numbers)} runs"
        listed = ", ".join(names[number] for number in numbers[:NAMED])
        return listed if len(numbers) <= NAMED else f"{listed} and {len(numbers) - NAMED} more"

    notes = [
        f"{names[number]} is left out: {record.problem}"
        for number, record in enumerate(records)
        if record.problem is not None
    ]
    unfinished = [n for n in configs if records[n].status != "finished"]
    if unfinished:
        notes.append(
            f"Not finished, and left out of the comparison: {some(unfinished)}. Their figures are so far."
        )
    for column, what in (
        (
            "eval_top1",
            "No top-1 was recorded (no validation images, or outputs that are no classes)",
        ),
        ("step", "Steps were not recorded (an earlier version's runs)"),
        ("seconds", "Seconds were not recorded"),
    ):
        without = [n for n in configs if records[n].rows and records[n].last(column) is None]
        if without:
            notes.append(f"{what}: {some(without)}.")
    unknown = [n for n in configs if records[n].rows and records[n].classes is None]
    if unknown and measured is None:
        notes.append(f"Results by class were not recorded: {some(unknown)}.")
    compared = {
        str(config.val or (config.data and evaluation_split(config.data)))
        for config in configs.values()
    }
    if len(compared) > 1:
        notes.append(
            f"The runs were evaluated on images at {len(compared)} different places: whether these are the same "
            "was not recorded."
        )
    thin = [n for n in configs if len(records[n].rows) > POINTS]
    if thin:
        notes.append(f"Curves of more than {POINTS:,} passes are thinned out: {some(thin)}.")
    return notes
