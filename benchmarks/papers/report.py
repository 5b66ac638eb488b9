"""benchmarks/reports/papers.json, papers.md and papers.png from the runs that are there."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from benchmarks.papers.claims import Finding, half_width, judge
from benchmarks.papers.runs import Outcome
from benchmarks.papers.setting import Setting
from benchmarks.papers.tables import Table

REPORTS = Path(__file__).parent.parent / "reports"
Outcomes = Mapping[str, Mapping[str, Mapping[int, Outcome]]]
"""Table -> arm -> seed -> what the run reached."""


def findings(table: Table, outcomes: Mapping[str, Mapping[int, Outcome]]) -> list[Finding]:
    """Every claim of the table that can be judged from the runs that are there."""
    found = []
    for claim in table.claims:
        values = {
            arm: {seed: float(getattr(run, claim.of)) for seed, run in runs.items()}
            for arm, runs in outcomes.items()
        }
        found.append(judge(claim, values))
    return [finding for finding in found if finding is not None]


def write(
    tables: Sequence[Table], outcomes: Outcomes, setting: Setting, *, command: str, minutes: float
) -> None:
    """Write the JSON list, the page and the picture."""
    REPORTS.mkdir(exist_ok=True)
    records = [
        {
            "table": table.name,
            "claim": found.claim.text,
            "paper": found.claim.paper,
            "unit": found.claim.unit,
            "mean": round(found.mean, 3),
            "ci95": None if math.isnan(found.ci95) else round(found.ci95, 3),
            "seeds": found.seeds,
            "verdict": found.verdict,
        }
        for table in tables
        for found in findings(table, outcomes[table.name])
    ]
    (REPORTS / "papers.json").write_text(json.dumps(records, indent=1) + "\n")
    (REPORTS / "papers.md").write_text(as_markdown(tables, outcomes, setting, command, minutes))
    draw(tables, outcomes, REPORTS / "papers.png")


def as_markdown(
    tables: Sequence[Table], outcomes: Outcomes, setting: Setting, command: str, minutes: float
) -> str:
    """The page: setting, every table with its claims, what each verdict rests on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "labelstore"))
    images = setting.images
    lines = [
        "# The papers' claims in miniature",
        "",
        f"`{command}`, {datetime.now(UTC).date().isoformat()}, commit {commit}, {os.cpu_count()} cores,",
        f"{platform.machine()}, no GPU, {versions}; {minutes:.0f} CPU minutes of students.",
        "",
        f"{images['train']:,} train pictures of 20 classes at {setting.input_size} px. Every student sees",
        f"{images['train'] * setting.epochs:,} crops unless its row says otherwise; top-1 on {images['val']:,} val pictures.",
        "Choices (network, epochs, learning rate, crops of an image in a batch, the rule of FerKD's mask) were made on",
        f"{images['tune']:,} other pictures. The teacher learnt from {images['teacher']:,} pictures, the train ones among them.",
        "",
        "A claim *holds* when the 95 % interval of the paired differences (same seed: initial weights and drawing",
        "order) lies above 0, is *reversed* when it lies below, and *undecided* otherwise: a difference smaller than",
        "the ± would not have been seen.",
        "",
        "![differences with their intervals](papers.png)",
        "",
    ]
    for table in tables:
        lines += _table_lines(table, outcomes[table.name])
    return "\n".join(lines) + "\n"


def _table_lines(table: Table, outcomes: Mapping[str, Mapping[int, Outcome]]) -> list[str]:
    lines = [f"## {table.title}", "", f"Here: {table.here}.", ""]
    lines += ["| arm | paper | top-1 here | seeds | CPU s per run |", "|---|---|---|---|---|"]
    for arm in table.arms:
        runs = list(outcomes[arm.name].values())
        if not runs:
            lines.append(f"| {arm.name} | {table.paper.get(arm.name, '')} | not run | 0 | |")
            continue
        values = [run.top1 for run in runs]
        half = half_width(values)
        spread = "" if math.isnan(half) else f" ± {half:.1f}"
        seconds = mean(run.train_seconds for run in runs)
        lines.append(
            f"| {arm.name} | {table.paper.get(arm.name, '')} | {mean(values):.1f}{spread} | {len(values)} | {seconds:.0f} |"
        )
    lines.append("")
    for found in findings(table, outcomes):
        paper = "" if found.claim.paper is None else f" (paper {found.claim.paper:+.2f})"
        within = (
            "one pair" if math.isnan(found.ci95) else f"± {found.ci95:.2f}, {found.seeds} pairs"
        )
        lines.append(
            f"- {found.claim.text}: {found.mean:+.2f} {found.claim.unit} ({within}){paper}: "
            f"**{found.verdict}**"
        )
    if table.found:
        lines += ["", table.found]
    return [*lines, ""]


def draw(tables: Sequence[Table], outcomes: Outcomes, path: Path) -> None:
    """Every claim's paired difference with its 95 % interval, one line each."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [
        (table, found)
        for table in tables
        for found in findings(table, outcomes[table.name])
        if found.claim.of == "top1"
    ]
    if not rows:
        return
    colours = {"holds": "#1b7837", "reversed": "#b2182b", "undecided": "#777777"}
    figure, axes = plt.subplots(figsize=(9, 0.32 * len(rows) + 1.2), layout="constrained")
    for at, (_, found) in enumerate(reversed(rows)):
        half = 0.0 if math.isnan(found.ci95) else found.ci95
        axes.errorbar(found.mean, at, xerr=half, fmt="o", color=colours[found.verdict], capsize=3)
        if found.claim.paper is not None:
            axes.plot(found.claim.paper, at, marker="|", color="black", markersize=11)
    axes.axvline(0, color="black", linewidth=0.8)
    names = [f"{table.name}: {found.claim.text}" for table, found in reversed(rows)]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_xlabel(
        "points of top-1, paired; | is the paper's\ngreen holds, red reversed, grey undecided"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
