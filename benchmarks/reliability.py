"""The matrix of reliability as a report: `python -m benchmarks.reliability FILE`, FILE from the stress tests.

`make stress` runs them at full size with `--matrix-report FILE`, to which each test appends its counts. Here they
are added up per row and held against the row's target. A row that falls short stays, with what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPORTS = Path(__file__).parent / "reports"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: what is tried, how often it must be, and what must not happen."""

    test: str
    least: Mapping[str, float] = field(default_factory=dict)
    """Count -> how many there must be."""
    zero: tuple[str, ...] = ()
    """Counts that must be there and be 0."""
    most: Mapping[str, float] = field(default_factory=dict)
    """Figure -> its bound."""
    every: str = ""
    """Count that must reach the count named `of` instead of a number, where that is less."""

    @property
    def target(self) -> str:
        """The target in words."""
        words = [f"{_number(n)} {_words(name)}" for name, n in self.least.items()]
        words += [f"{_words(name)} below {_number(n)}" for name, n in self.most.items()]
        return ", ".join([*words, *(f"0 {_words(name)}" for name in self.zero)])


ROWS: dict[str, Row] = {
    "R1": Row(
        test="random kill -9 while generating; zarr and hdf5; SQLite and PostgreSQL",
        least={"kills": 200},
        zero=("lost", "wrong"),
    ),
    "R2": Row(
        test="kill at every system call on store files (strace)",
        least={"points": 300},
        zero=("violations",),
        every="points",
    ),
    "R3": Row(
        test="EIO, ENOSPC, EMFILE, EACCES at every such call: exit 6, the message names the file",
        least={"points": 300},
        zero=("silent",),
        every="points",
    ),
    "R4": Row(
        test="power-loss model: states that POSIX allows after any system call",
        least={"different": 1000},
        zero=("lost", "undetected"),
    ),
    "R5": Row(
        test="every file synced before its rename, every folder before the commit (strace)",
        least={"commits": 12},
        zero=("unordered",),
    ),
    "R6": Row(
        test="bit flips in shard files, all detected, one shard named",
        least={"zarr_flips": 1000, "hdf5_flips": 1000},
        zero=("unnoticed",),
    ),
    "R7": Row(
        test="bit flips in metadata, manifest, catalogue: no read or query returns anything else without exit 3 or 4",
        least={"metadata": 500, "manifest": 500, "catalogue": 500},
        zero=("changed",),
    ),
    "R8": Row(
        test="missing, empty, truncated, swapped, stale, duplicated files, folders in their place",
        least=dict.fromkeys(
            ("missing", "empty", "truncated", "swapped", "stale", "duplicated", "folder"), 100
        ),
        zero=("wrong",),
    ),
    "R9": Row(
        test="malformed label files of other projects",
        least={"crafted": 60, "mutated": 2000},
        zero=("crashes",),
    ),
    "R10": Row(
        test="malformed stores, catalogues, manifests, checkpoints: refused within 1 GiB and 10 s",
        least={"stores": 60},
        zero=("harmed",),
    ),
    "R11": Row(
        test="8 writers on SQLite and PostgreSQL; owners who come back after their lease",
        least={"shards": 500, "zombies": 20},
        zero=("duplicates", "lost", "overwritten"),
    ),
    "R12": Row(
        test="one writer, four readers",
        least={"reads": 5_000},
        zero=("wrong", "locked"),
    ),
    "R13": Row(
        test="DataLoader fork, forkserver, spawn x zarr, hdf5; handle opened before",
        least={"reads": 60_000},
        zero=("hangs", "wrong"),
    ),
    "R14": Row(
        test="full disk, read-only mount, no permission, for every command that writes",
        least={"commands": 30},
        zero=("broken",),
    ),
    "R15": Row(
        test="every older format in tests/data; kill in migrate",
        least={"stores": 2, "migrate_kills": 50},
        zero=("wrong",),
    ),
    "R16": Row(
        test="hypothesis model: add, commit, kill, reopen, gc, repair, grow, freeze, drop, calibrate",
        least={"sequences": 1000},
        zero=("violations",),
    ),
    "R17": Row(
        test="round trips store -> FKD, ml-dr, NumPy, Parquet -> store, zarr <-> hdf5, every codec and dtype: "
        "bit-equal or within the stated bound",
        least={"round_trips": 100, "bit_equal": 30},
        zero=("unequal",),
    ),
    "R18": Row(
        test="golden store through xarray, tensorstore, plain zarr, h5py, h5dump",
        least={"readers": 5},
        zero=("unequal",),
    ),
    "R19": Row(
        test="trainer killed anywhere, resumed: difference of the weights (CPU); damaged checkpoints refused",
        least={"points": 20, "refused": 20},
        zero=("different",),
    ),
    "R20": Row(
        test="command-line contract: help, exit codes, --json, --dry-run, for every command",
        least={"commands": 20},
        zero=("violations",),
    ),
    "R21": Row(
        test="catalogue of 1,281,167 images",
        least={"images": 1_281_167},
        most={"open_seconds": 1, "open_mb": 500},
    ),
    "R22": Row(
        test="store, images, scratch and outputs under odd paths, absolute, relative and through a link: works, or is "
        "refused before anything is written; nothing is written elsewhere",
        least={"paths": 40, "tried": 240},
        zero=("harmed",),
    ),
    "R23": Row(
        test="clocks: leases that expire ahead of any clock, clocks set back and forward under a worker, owners that "
        "slept past their lease",
        least={"cases": 20},
        zero=("endless",),
    ),
    "R24": Row(
        test="lying servers: S3 (endless body, no length, one byte a second, wrong range or size, 200 for 206, redirect, "
        "cut), PostgreSQL that says nothing, or sends a row larger than any of ours, a Hub that lies on size or digest, or "
        "never ends: refused in bounded time and memory",
        least={"cases": 30},
        zero=("wrong",),
        most={"peak_mb": 268},
    ),
    "R25": Row(
        test="single cells of a stranger's catalogue replaced by every odd value, digests made to match; info, stats, "
        "verify, and a fifth with create and run: read, or one line",
        least={"cells": 500},
        zero=("tracebacks",),
    ),
    "R26": Row(
        test="odd pictures: every format and mode that Pillow opens, bombs, lying headers, PostScript under .jpg: "
        "pixels as documented or one line",
        least={"files": 120},
        zero=("wrong", "programs"),
        most={"peak_mb": 1074},
    ),
    "R27": Row(
        test="a store that is moved, frozen, grown, calibrated, collected, or loses its label set, and a scratch folder "
        "that is removed, at any step of a run; a draw file that is removed or shared, an unpacked copy, a run folder "
        "with two runs: refused, or bit-equal",
        least={"interleavings": 40},
        zero=("different",),
    ),
    "R28": Row(
        test="run ends: a last step of one crop, one image, one class, one shard, more warm-up than epochs, more ranks "
        "than images: trains, or is refused before the first step",
        least={"shapes": 40},
        zero=("wrong",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row with what was counted."""

    name: str
    figures: Mapping[str, float]
    failed: tuple[str, ...]
    missing: tuple[str, ...]
    tests: int
    seconds: float
    commits: tuple[str, ...]
    """Of the code that was tested."""

    @property
    def verdict(self) -> str:
        """met, FAILED, short or not run."""
        if self.failed:
            return "FAILED"
        if not self.tests:
            return "not run"
        return "short" if self.missing else "met"


def judge(name: str, records: Iterable[Mapping[str, object]]) -> Outcome:
    """Add up one row's counts and compare them with its target."""
    row, own = ROWS[name], [record for record in records if record["row"] == name]
    total: dict[str, float] = {}
    for record in own:
        figures = record["figures"]
        assert isinstance(figures, Mapping)
        for key, value in figures.items():
            # bounds are about the worst, the rest are counts
            total[key] = (
                max(total.get(key, 0), value) if key in row.most else total.get(key, 0) + value
            )
    missing = []
    for key, due in row.least.items():
        wanted = min(due, total["of"]) if key == row.every and "of" in total else due
        if total.get(key, 0) < wanted:
            missing.append(f"{_number(total.get(key, 0))} of {_number(wanted)} {_words(key)}")
    missing += [f"{_words(key)} not counted" for key in row.zero if key not in total]
    missing += [
        f"{_words(key)} {_number(total[key])} above {_number(most)}"
        if key in total
        else f"{_words(key)} not measured"
        for key, most in row.most.items()
        if total.get(key, most + 1) > most
    ]
    failed = [str(record["test"]) for record in own if record["failed"]]
    failed += [f"{_number(total[key])} {_words(key)}" for key in row.zero if total.get(key)]
    return Outcome(
        name=name,
        figures=total,
        failed=tuple(failed),
        missing=tuple(missing),
        tests=len(own),
        seconds=sum(float(str(record["seconds"])) for record in own),
        commits=tuple(sorted({str(record.get("commit") or "unknown") for record in own})),
    )


def as_reported(name: str, reported: Mapping[str, Any]) -> Outcome:
    """A row as an earlier report has it."""
    texts = {key: tuple(reported[key]) for key in ("failed", "missing", "commits")}
    numbers = {key: reported[key] for key in ("figures", "tests", "seconds")}
    return Outcome(name=name, **texts, **numbers)


def as_markdown(outcomes: list[Outcome], about: Mapping[str, object]) -> str:
    """The report."""
    lines = [
        "# Reliability: the matrix",
        "",
        (
            f"`make stress`, then `python -m benchmarks.reliability FILE`; {about['date']}, "
            f"{about['hardware']}, Python {about['python']}, --stress-scale {about['scale']}. "
            "Counts of all tests of a row are added up, of runs at the commits that it names; what each row means is in "
            "[docs/explanation/reliability.md](../../docs/explanation/reliability.md)."
        ),
        "",
        "| # | test | target | result | | commit |",
        "|---|---|---|---|---|---|",
    ]
    for found in outcomes:
        row = ROWS[found.name]
        result = ", ".join(
            f"{_number(value)} {_words(key)}" for key, value in found.figures.items()
        )
        remark = {
            "FAILED": f"**FAILED**: {'; '.join(found.failed)}",
            "short": f"short: {'; '.join(found.missing)}",
            "met": "met",
            "not run": "not run",
        }[found.verdict]
        lines.append(
            f"| {found.name} | {row.test} | {row.target} | {result or 'none'} | {remark} | "
            f"{', '.join(found.commits)} |"
        )
    count = sum(found.verdict == "met" for found in outcomes)
    lines += ["", f"{count} of {len(outcomes)} rows met."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the counts, write benchmarks/reports/reliability.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="+", help="written by pytest --matrix-report")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="folder to write")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the report"
    )
    parser.add_argument(
        "--keep", action="store_true", help="rows that no FILE counts stay as the report has them"
    )
    arguments = parser.parse_args()
    records = [
        json.loads(line) for path in arguments.file for line in path.read_text().splitlines()
    ]
    if not records:
        sys.exit(f"{arguments.file[0]} holds no counts: run the stress tests with --matrix-report")
    scales = sorted({record["scale"] for record in records})
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("labelstore", "zarr", "h5py", "SQLAlchemy")},
        "scale": ", ".join(f"{scale:g}" for scale in scales),
    }
    before = arguments.reports / "reliability.json"
    kept = json.loads(before.read_text())["rows"] if arguments.keep and before.exists() else {}
    outcomes = [
        found if found.tests or name not in kept else as_reported(name, kept[name])
        for name, found in ((name, judge(name, records)) for name in ROWS)
    ]
    record = about | {
        "rows": {
            found.name: {
                "test": ROWS[found.name].test,
                "target": ROWS[found.name].target,
                "figures": dict(found.figures),
                "verdict": found.verdict,
                "missing": list(found.missing),
                "failed": list(found.failed),
                "tests": found.tests,
                "commits": list(found.commits),
                "seconds": round(found.seconds, 1),
            }
            for found in outcomes
        }
    }
    arguments.reports.mkdir(exist_ok=True)
    (arguments.reports / "reliability.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.reports / "reliability.md").write_text(as_markdown(outcomes, about))
    print(json.dumps(record) if arguments.json else as_markdown(outcomes, about))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    main()
