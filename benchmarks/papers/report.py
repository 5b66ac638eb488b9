"""A report of tables and claims in benchmarks/reports (JSON, page, picture) from the runs that are there."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

from benchmarks.papers.claims import Finding, half_width, judge, measure
from benchmarks.papers.runs import Outcome
from benchmarks.papers.tables import Table

REPORTS = Path(__file__).parent.parent / "reports"
Outcomes = Mapping[str, Mapping[str, Mapping[int, Outcome]]]
"""Table -> arm -> seed -> what the run reached."""
Findings = Mapping[str, Sequence[Finding]]
"""Table -> its claims that can be judged from the runs that are there."""

VERDICTS = """\
Differences are paired (same seed: initial weights and drawing order); ± is their 95 % interval. A claim *holds* or is
*reversed in this setting* where the paired t test sees a difference at 5 % after {method}.
Otherwise it *cannot be seen at this size* where the paper's effect is smaller than what this many pairs see with a power of
80 % ("visible", from the scatter of these very pairs, so itself rough with few of them), and is *undecided* where the paper
names no size or an effect of the paper's size would have been seen more often than not."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a report says beside its tables."""

    name: str
    """Of its files in benchmarks/reports."""
    title: str
    command: str
    setting: Sequence[str]
    """Lines: what was trained on what."""
    method: str
    """How its claims are tested together."""


def judged(tables: Sequence[Table], outcomes: Outcomes) -> Findings:
    """Every claim of all tables that can be judged, tested together."""
    measured: dict[str, list[Finding]] = {}
    for table in tables:
        runs = outcomes[table.name]
        found = [
            measure(
                claim,
                {
                    arm: {seed: run.figure(claim.of) for seed, run in of_arm.items()}
                    for arm, of_arm in runs.items()
                },
            )
            for claim in table.claims
        ]
        measured[table.name] = [one for one in found if one is not None]
    named = sum(claim.primary for table in tables for claim in table.claims)
    everything = [one for of_table in measured.values() for one in of_table]
    together = iter(judge(everything, named=named))
    return {name: [next(together) for _ in of_table] for name, of_table in measured.items()}


def write(page: Page, tables: Sequence[Table], outcomes: Outcomes, environment: str) -> None:
    """Write the JSON list, the page and the picture. `environment`: when and with what the runs were made."""
    REPORTS.mkdir(exist_ok=True)
    findings = judged(tables, outcomes)
    records = [
        {
            "table": table.name,
            "claim": found.claim.text,
            "primary": found.claim.primary,
            "paper": found.claim.paper,
            "unit": found.claim.unit,
            "mean": round(found.mean, 3),
            "ci95": _number(found.ci95, 3),
            "seeds": found.seeds,
            "p": _number(found.p, 5),
            "adjusted_p": _number(found.adjusted, 5),
            "visible": _number(found.visible, 3),
            "verdict": found.verdict,
        }
        for table in tables
        for found in findings[table.name]
    ]
    (REPORTS / f"{page.name}.json").write_text(json.dumps(records, indent=1) + "\n")
    text = as_markdown(page, tables, outcomes, findings, environment)
    (REPORTS / f"{page.name}.md").write_text(text)
    draw(tables, findings, REPORTS / f"{page.name}.png")


def as_markdown(
    page: Page,
    tables: Sequence[Table],
    outcomes: Outcomes,
    findings: Findings,
    environment: str,
) -> str:
    """The page: setting, every table with its claims, what each verdict rests on."""
    seconds = {
        (str((arm.options, arm.needs)), seed): run.train_seconds
        for table in tables
        for arm in table.arms
        for seed, run in outcomes[table.name][arm.name].items()
    }
    counts = Counter(found.verdict for of_table in findings.values() for found in of_table)
    lines = [
        f"# {page.title}",
        "",
        f"`{page.command}`, judged {datetime.now(UTC).date().isoformat()} from {len(seconds)} runs; {environment};",
        f"{sum(seconds.values()) / 60:.0f} CPU minutes of students.",
        "",
        *page.setting,
        "",
        *VERDICTS.format(method=page.method).splitlines(),
        "",
        f"{counts.total()} claims: "
        + ", ".join(f"{count} {name}" for name, count in counts.most_common())
        + ".",
        "",
        f"![differences with their intervals]({page.name}.png)",
        "",
    ]
    for table in tables:
        lines += _table_lines(table, outcomes[table.name], findings[table.name])
    return "\n".join(lines) + "\n"


def _number(value: float, places: int) -> float | None:
    return None if math.isnan(value) else round(value, places)


def _table_lines(
    table: Table, outcomes: Mapping[str, Mapping[int, Outcome]], findings: Sequence[Finding]
) -> list[str]:
    lines = [f"## {table.title}", "", f"Here: {table.here}.", ""]
    titles = ["arm", "paper", "top-1 here", *table.figures.values(), "seeds", "CPU s per run"]
    lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for arm in table.arms:
        runs = list(outcomes[arm.name].values())
        if not runs:
            why = arm.waits_for() or "not run"
            cells = [
                arm.name,
                table.paper.get(arm.name, ""),
                why,
                *[""] * len(table.figures),
                0,
                "",
            ]
        else:
            seconds = mean(run.train_seconds for run in runs)
            figures = [_figures(runs, names) for names in ("top1", *table.figures)]
            cells = [arm.name, table.paper.get(arm.name, ""), *figures, len(runs), f"{seconds:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines.append("")
    lines += [_finding_line(found) for found in findings]
    if table.found:
        lines += ["", table.found]
    return [*lines, ""]


def _figures(runs: Sequence[Outcome], names: str) -> str:
    """One figure of the runs, or several side by side."""
    return " / ".join(_spread([run.figure(name) for run in runs]) for name in names.split())


def _spread(values: Sequence[float]) -> str:
    """The mean, to three digits, and half the width of its 95 % interval."""
    centre, half = mean(values), half_width(values)
    places = 1 if abs(centre) >= 10 else 3
    return f"{centre:.{places}f}" + ("" if math.isnan(half) else f" ± {half:.{places}f}")


def _finding_line(found: Finding) -> str:
    claim = found.claim
    places = 2 if claim.unit in ("points", "CPU s") else 4
    paper = "" if claim.paper is None else f", paper {claim.paper:+.2f}"
    if math.isnan(found.ci95):
        within = "one pair"
    else:
        within = (
            f"± {found.ci95:.{places}f}, {found.seeds} pairs, p {found.adjusted:.2g} adjusted, "
            f"visible {found.visible:.{places}f}"
        )
    primary = "primary: " if claim.primary else ""
    return (
        f"- {primary}{claim.text}: {found.mean:+.{places}f} {claim.unit} ({within}{paper}): "
        f"**{found.verdict}**"
    )


def draw(tables: Sequence[Table], findings: Findings, path: Path) -> None:
    """Every claim's paired difference with its 95 % interval, one line each."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [
        (table, found)
        for table in tables
        for found in findings[table.name]
        if found.claim.of == "top1"
    ]
    if not rows:
        return
    colours = {"holds": "#1b7837", "reversed in this setting": "#b2182b"}
    figure, axes = plt.subplots(figsize=(9, 0.32 * len(rows) + 1.2), layout="constrained")
    for at, (_, found) in enumerate(reversed(rows)):
        half = 0.0 if math.isnan(found.ci95) else found.ci95
        axes.errorbar(
            found.mean,
            at,
            xerr=half,
            fmt="o",
            color=colours.get(found.verdict, "#777777"),
            capsize=3,
        )
        if found.claim.paper is not None:
            axes.plot(found.claim.paper, at, marker="|", color="black", markersize=11)
    axes.axvline(0, color="black", linewidth=0.8)
    names = [f"{table.name}: {found.claim.text}" for table, found in reversed(rows)]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_xlabel(
        "points of top-1, paired; | is the paper's\ngreen holds, red reversed in this setting, grey not seen"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
