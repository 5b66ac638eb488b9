"""The demo's claim over several seeds: stored soft labels against ground truth, at equal crops seen.

    python -m benchmarks.demo_seeds demo --seeds 20 --jobs 2

Images, teacher and store of `make demo` stay the same; a seed changes initial weights, drawing order and the random
crops of the ground-truth students. Finished runs are kept, so that an interrupted call goes on. Writes
benchmarks/reports/demo.json and demo.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from benchmarks.demo import EPOCHS, IMAGES, NUM_CROPS, STUDENTS, Student, student_command, top1_of
from benchmarks.machine import commit
from benchmarks.papers.claims import half_width as interval
from benchmarks.steps import BIN

REPORTS = Path(__file__).parent / "reports"


def train(student: Student, seed: int, folder: Path) -> float:
    """Top-1 of one run, trained unless it is there."""
    name = f"{student.method.replace(' ', '-')}-m{student.crops_per_image}-seed{seed}"
    run = folder / "seeds" / name
    if not (run / "finished").exists():
        command = student_command(
            student, folder=folder / "images", store=folder / "digits.labels", run=run, seed=seed
        )
        words = [*shlex.split(command), "--resume"]
        environment = dict(os.environ, OMP_NUM_THREADS="1", PATH=f"{BIN}:{os.environ['PATH']}")
        subprocess.run([str(BIN / words[0]), *words[1:]], env=environment, check=True)
        (run / "finished").touch()
    return top1_of(run)


def verdict(difference: list[float]) -> str:
    """holds, reversed in this setting or undecided, from the paired differences' 95 % interval."""
    centre, half = mean(difference), interval(difference)
    if centre - half > 0:
        return "holds"
    return "reversed in this setting" if centre + half < 0 else "undecided"


def main() -> None:
    """Train what is missing and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    jobs = [(student, seed) for seed in range(arguments.seeds) for student in STUDENTS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        reached = list(pool.map(lambda job: train(*job, arguments.folder), jobs))
    top1 = {
        f"{student.method}, m={student.crops_per_image}": [
            value for (other, _), value in zip(jobs, reached, strict=True) if other is student
        ]
        for student in STUDENTS
    }
    truth = max((name for name in top1 if name.startswith("ground")), key=lambda n: mean(top1[n]))
    claims = []
    for method in ("fkd, m=4", "ferkd, m=4"):
        difference = [a - b for a, b in zip(top1[method], top1[truth], strict=True)]
        claims.append(
            {
                "claim": f"{method} above {truth}",
                "mean": mean(difference),
                "ci95": interval(difference),
                "seeds": len(difference),
                "above": sum(value > 0 for value in difference),
                "verdict": verdict(difference),
            }
        )
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in ("torch", "timm", "labelstore")},
        "images": IMAGES,
        "num_crops": NUM_CROPS,
        "epochs": EPOCHS,
        "teacher_top1": top1_of(arguments.folder / "teacher"),
        "top1": top1,
        "claims": claims,
    }
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "demo.json").write_text(json.dumps(record, indent=1) + "\n")
    (REPORTS / "demo.md").write_text(as_markdown(record))
    print(json.dumps(record) if arguments.json else as_markdown(record))


def as_markdown(record: dict) -> str:
    """The report."""
    rows = "\n".join(
        f"| {name} | {mean(values):.1f} ± {interval(values):.1f} | {' '.join(f'{v:.1f}' for v in values)} |"
        for name, values in record["top1"].items()
    )
    claims = "\n".join(
        f"- {c['claim']}: {c['mean']:+.1f} ± {c['ci95']:.1f} points, above in {c['above']} of {c['seeds']} paired seeds: **{c['verdict']}**"
        for c in record["claims"]
    )
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"""# The demo over several seeds

`python -m benchmarks.demo_seeds demo --seeds {record["claims"][0]["seeds"]}` after `make demo`, {record["date"]}, commit {record["commit"]},
{record["hardware"]}, {versions}. Top-1 on 1,000 val images after {record["epochs"] * record["images"]:,} crops seen of
{record["images"]} train images, mean and 95 % interval; {record["num_crops"]} stored crops per image, teacher {record["teacher_top1"]:.1f} % (trained on 4,000 images,
these among them). A seed changes initial weights, drawing order and random crops; images, teacher and store
are the same throughout.

| student | top-1 | every seed |
|---|---|---|
{rows}

{claims}
"""


if __name__ == "__main__":
    sys.exit(main())
