"""The whole job on real images, as a user would type it: data, teacher, labels, calibration, four students.

`make demo` runs this. Every command is printed before it runs and timed after it. The settings are small
enough for two cores: real handwritten digits in real photographs, 32 px, ResNets of four basic blocks. Students have 250
pictures, the teacher had 4,000: few human labels are where distillation pays.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.steps import Steps

IMAGES = 250
"""Labelled pictures that students have."""
NUM_CROPS = 80
EPOCHS = 100
"""Of `demo_student.yaml`: crops that every student sees, in multiples of these pictures."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """One row of the table."""

    method: str
    crops_per_image: int
    options: str


STUDENTS = (
    Student(method="ground truth", crops_per_image=1, options="--labels ground-truth"),
    Student(method="ground truth", crops_per_image=4, options="--labels ground-truth"),
    Student(method="fkd", crops_per_image=4, options="--labels fkd --store {store}"),
    Student(
        method="ferkd",
        crops_per_image=4,
        options="--labels ferkd --store {store} --mask ferkd",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one student reached."""

    method: str
    crops_per_image: int
    top1: float
    """Percent."""
    seconds: float


def config(name: str) -> str:
    """A settings file beside this one, as one would type its path."""
    return os.path.relpath(Path(__file__).with_name(name))


def student_command(student: Student, *, folder: Path, store: Path, run: Path, seed: int) -> str:
    """The `trainer run` of one student."""
    single = "--crops-per-image 1 " if student.crops_per_image == 1 else ""
    return (
        f"trainer run -c {config('demo_student.yaml')} --data {folder} {student.options.format(store=store)} "
        f"{single}--seed {seed} --output {run}"
    )


def teacher_command(*, folder: Path, run: Path, seed: int = 0) -> str:
    """The `trainer run` that makes the teacher."""
    return (
        f"trainer run -c {config('demo_teacher.yaml')} --data {folder} --train {folder}/teacher "
        f"--seed {seed} --output {run}"
    )


def top1_of(run: Path) -> float:
    """Top-1 after the last pass, in percent, from a run folder's summary.csv."""
    with (run / "summary.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return float(rows[-1]["eval_top1"])


def table(results: list[Result]) -> str:
    """One line per method: method, m, top1, seconds."""
    lines = [f"{'method':<14}{'m':>3}{'top1':>8}{'seconds':>10}"]
    lines += [
        f"{r.method:<14}{r.crops_per_image:>3}{r.top1:>8.1f}{r.seconds:>10.0f}" for r in results
    ]
    return "\n".join(lines)


def claim(results: list[Result]) -> str:
    """FKD's claim in words: stored soft labels against the better of the two ground-truth students."""
    truth = max((r for r in results if r.method == "ground truth"), key=lambda r: r.top1)
    fkd = next(r for r in results if r.method == "fkd")
    gap = fkd.top1 - truth.top1
    verdict = "holds" if gap > 0 else "does not hold"
    return (
        f"Claim: a student of stored soft labels (fkd) beats the better ground-truth student at the same number of "
        f"crops seen.\nIn this run it {verdict}: fkd {fkd.top1:.1f} %, ground truth (m={truth.crops_per_image}) "
        f"{truth.top1:.1f} %, difference {gap:+.1f} points (one seed; more seeds in benchmarks/reports/demo.md)."
    )


def main() -> None:
    """Run the demo in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="go on in a folder that is there")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if folder.exists() and not arguments.keep:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images, store, teacher = folder / "images", folder / "digits.labels", folder / "teacher"
    steps = Steps(title="demo")
    steps.run(
        "images",
        f"labelstore demo-images {images} --train {IMAGES} --sides 64,96 --seed {arguments.seed}",
    )
    steps.run("teacher", teacher_command(folder=images, run=teacher))
    steps.run(
        "labels",
        f"labelstore create {store} --images {images}/train --teacher {teacher} --num-crops {NUM_CROPS} "
        "--compression ms --k 5 --flip-prob 0",
    )
    steps.run("stats", f"labelstore stats {store}")
    steps.run("calibration, dry run", f"labelstore calibrate {store} --dry-run")
    steps.run("calibration", f"labelstore calibrate {store} --name ferkd --quantiles 0.02,0.10,1.0")
    results = []
    # a small student keeps little more than one core busy
    for pair in (STUDENTS[:2], STUDENTS[2:]):
        runs = [
            folder / f"{each.method.replace(' ', '-')}-m{each.crops_per_image}" for each in pair
        ]
        commands = {
            f"{each.method}, m={each.crops_per_image}": student_command(
                each, folder=images, store=store, run=run, seed=arguments.seed
            )
            for each, run in zip(pair, runs, strict=True)
        }
        results += [
            Result(
                method=each.method,
                crops_per_image=each.crops_per_image,
                top1=top1_of(run),
                seconds=step.seconds,
            )
            for each, run, step in zip(pair, runs, steps.run_together(commands), strict=True)
        ]
    print(f"\n{steps.table()}")
    print(
        f"\nTeacher: {top1_of(teacher):.1f} % top-1 on val. Students of {IMAGES} pictures, {EPOCHS * IMAGES:,} crops seen each:\n"
    )
    print(claim(results))
    print()
    print(table(results), flush=True)


if __name__ == "__main__":
    main()
