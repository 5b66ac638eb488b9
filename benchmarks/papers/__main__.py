"""The papers' claims in miniature: train what is missing, write the report.

    make papers
    make papers PAPERS_ARGS="--only fkd-table7 --smoke"

Every finished run is kept in the folder, so that an interrupted call goes on where it was. Seeds come one after another,
so that a report after any time compares all arms over the seeds that all have.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.papers import report, tables_ferkd, tables_fkd, tables_hald
from benchmarks.papers.runs import (
    Arm,
    environment,
    is_there,
    outcome,
    record_environment,
    torch_of_one_thread,
    train_one,
)
from benchmarks.papers.setting import SMOKE, Setting
from benchmarks.papers.stage import Stage
from benchmarks.papers.tables import Table

RESULTS = Path(__file__).parent / "results"
"""One file per finished run, committed: work of several days adds up."""

TABLES: tuple[Table, ...] = (*tables_fkd.TABLES, *tables_ferkd.TABLES, *tables_hald.TABLES)


def main() -> None:
    """Run the command line."""
    arguments = command_line("benchmarks.papers", __doc__.splitlines()[0], TABLES, seeds=5)
    if arguments.smoke:
        folder = arguments.folder / "smoke"
        stage = Stage(SMOKE, folder, folder / "results")
    else:
        stage = Stage(Setting(), arguments.folder, RESULTS)
    run(stage, TABLES, page(Setting()), arguments)


def command_line(
    program: str, description: str, tables: Sequence[Table], *, seeds: int
) -> argparse.Namespace:
    """The options of an experiment."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    names = [table.name for table in tables]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="TABLE")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--smoke", action="store_true", help="one tiny run of each arm, no report")
    parser.add_argument("--folder", type=Path, default=Path("papers"))
    parser.add_argument("--minutes", type=float, help="stop after so long and report what is there")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each")
    parser.add_argument("--report-only", action="store_true")
    return parser.parse_args()


def run(
    stage: Stage, tables: Sequence[Table], page: report.Page, arguments: argparse.Namespace
) -> None:
    """Train what is missing of the chosen tables, and report all of them."""
    seeds = 1 if arguments.smoke else arguments.seeds
    deadline = time.time() + 60 * (arguments.minutes or 1e9)
    if not arguments.report_only:
        torch_of_one_thread()
        stage.prepare()
        chosen = [table for table in tables if table.name in arguments.only]
        train_missing(stage, chosen, seeds, deadline, jobs=arguments.jobs)
    if not arguments.smoke:
        report.write(page, tables, gathered(stage, tables, seeds), environment(stage))


def page(setting: Setting) -> report.Page:
    """What the report says of the miniature."""
    images = setting.images
    return report.Page(
        name="papers",
        title="The papers' claims in miniature",
        command="make papers",
        setting=(
            f"{images['train']:,} train pictures of 20 classes at {setting.input_size} px. Every student sees",
            f"{images['train'] * setting.epochs:,} crops unless its row says otherwise; top-1 on {images['val']:,} val pictures.",
            "Choices (network, epochs, learning rate, crops of an image in a batch, the rule of FerKD's mask) were made on",
            f"{images['tune']:,} other pictures. The teacher learnt from {images['teacher']:,} pictures, the train ones among them.",
        ),
        method=(
            "Benjamini and Hochberg's method over all claims of the page: none was named before these runs, so none is primary"
        ),
    )


def train_missing(
    stage: Stage, tables: Sequence[Table], seeds: int, deadline: float, *, jobs: int
) -> None:
    """Train every arm for every seed, an arm of several tables once."""
    wanted: list[tuple[str, Arm, int]] = []
    for seed in range(seeds):
        for table in tables:
            wanted += [(table.name, arm, seed) for arm in table.arms if arm.waits_for() is None]
    first = {
        str((arm.options, arm.needs, seed)): (name, arm, seed)
        for name, arm, seed in reversed(wanted)
        if not is_there(stage, arm, seed)
    }
    waiting = list(reversed(first.values()))
    for what in sorted({what for _, arm, _ in waiting for what in arm.needs.values()}):
        stage.make(what)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=torch_of_one_thread) as pool:
        running = [pool.submit(train_one, stage, arm, seed, deadline) for _, arm, seed in waiting]
        for done, ((table_name, arm, seed), future) in enumerate(
            zip(waiting, running, strict=True), start=1
        ):
            reached = future.result()
            if reached is not None:
                print(
                    f"{done}/{len(waiting)} {table_name} {arm.name} seed {seed}: {reached.top1:.2f} % "
                    f"in {reached.train_seconds:.0f} CPU s",
                    flush=True,
                )
                record_environment(stage)


def gathered(stage: Stage, tables: Sequence[Table], seeds: int) -> report.Outcomes:
    """What is kept of every arm of the tables."""
    return {
        table.name: {
            arm.name: {
                seed: outcome(stage, arm, seed)
                for seed in range(seeds)
                if is_there(stage, arm, seed)
            }
            for arm in table.arms
        }
        for table in tables
    }


if __name__ == "__main__":
    sys.exit(main())
