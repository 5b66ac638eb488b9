"""What threads that make pixels cost a training loop which needs the interpreter's lock, and what a process gives back.

    python -m benchmarks.lock_share [--images 128] [--workers 1] [--rounds 3] [--report] [--json]

A stand-in for training: a step holds the lock for 30, 60 or 90 % of its time (Python that computes, as optimisers,
hooks and loggers do) and waits without it for the rest (a device that computes). The same step with one batch that is
ready, with the loader's threads, with `loader=process`, and with a torch DataLoader of `trainer.CropDataset`; pixels are
500 x 375 JPEGs, 4 crops each, at 224. A step takes 3 times the CPU time that its batch costs, so that one thread has time
to make it on a core of its own. Sides are interleaved, figures are medians over rounds, and ratios are of one round.

`gil_share` is the share of the time of those Python parts in which the training thread had work and no lock:
1 - (its own CPU seconds + its seconds on the run queue, of Linux's schedstat) / their wall seconds. They sleep and read
nothing, so that only the lock is left. What page faults and a busy host take counts as well: `ready` is what they are.
`wait_share` is the share of all the time in which the loop waited for a batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.loader_data import LoaderData, picture_data
from benchmarks.machine import commit, processor
from trainer.loader import CropDataset, CropLoader, LoaderOptions, StoredPasses, collate_crops
from trainer.sampler import PassSchedule

REPORT = Path(__file__).parent / "reports" / "lock_share"
HELD = (0.3, 0.6, 0.9)
SIDES = ("ready", "threads", "process", "dataloader")
IMAGES_PER_BATCH, CROPS_PER_IMAGE = 16, 4
MOST_PASSES = 100
SLACK = 3
"""A step over the CPU time of its batch."""

Pass = Callable[[int], Iterable[object]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=128)
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--report", action="store_true", help=f"write {REPORT}.md and .json")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.images, args.workers, args.rounds)
    if args.report:
        REPORT.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        REPORT.with_suffix(".md").write_text(page(result))
    print(json.dumps(result, separators=(",", ":")) if args.json else page(result))


def measure(folder: Path, images: int, workers: int, rounds: int) -> dict[str, Any]:
    """Steps per second of every side relative to `ready`, and gil_share, by share of the time that the lock is held."""
    data = picture_data(folder, images, 8)
    taken = iter(range(MOST_PASSES))
    with contextlib.ExitStack() as stack:
        passes = sides(data, workers, folder / "scratch", stack)
        for name in SIDES[1:]:
            for _ in passes[name](next(taken)):  # processes start, buffers are made
                pass
        spent = time.process_time()
        count = sum(1 for _ in passes["threads"](next(taken)))
        step = SLACK * (time.process_time() - spent) / count
        found: dict[tuple[str, float], list[Steps]] = {
            (name, held): [] for held in HELD for name in SIDES
        }
        for number in range(rounds):
            for held in HELD:
                for name in SIDES[number % len(SIDES) :] + SIDES[: number % len(SIDES)]:
                    found[name, held].append(run(passes[name](next(taken)), step, held))
    figures = {}
    for (name, held), side in found.items():
        at, ready = f"{name}_{100 * held:.0f}", found["ready", held]
        ratios = [one.rate / other.rate for one, other in zip(side, ready, strict=True)]
        figures[f"of_ready_{at}"] = statistics.median(ratios)
        figures[f"gil_share_{at}"] = statistics.median(one.gil_share for one in side)
        figures[f"wait_share_{at}"] = statistics.median(one.wait_share for one in side)
    return {
        **figures,
        "step_ms": 1000 * step,
        "steps_of_pass": count,
        "batch": [IMAGES_PER_BATCH, CROPS_PER_IMAGE],
        "workers": workers,
        "rounds": rounds,
        "processor": processor(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "labelstore_commit": commit(),
        "date": date.today().isoformat(),
    }


def sides(
    data: LoaderData, workers: int, scratch: Path, stack: contextlib.ExitStack
) -> dict[str, Pass]:
    """A pass of every side, by its number: as many batches each."""
    schedule = PassSchedule.of(passes=MOST_PASSES, crops_per_image=CROPS_PER_IMAGE)
    source = stack.enter_context(StoredPasses(data.labels, schedule=schedule, scratch=scratch))

    def ours(kind: str) -> Pass:
        loader = CropLoader(
            source,
            data.images,
            batch_size=IMAGES_PER_BATCH * CROPS_PER_IMAGE,
            options=LoaderOptions(workers=workers, kind=kind, scratch=scratch),  # type: ignore[arg-type]
        )
        stack.callback(loader.close)
        return loader.batches

    dataset = CropDataset(data.labels, data.images, CROPS_PER_IMAGE, scratch=scratch)
    stack.callback(dataset.close)
    others = DataLoader(
        dataset, IMAGES_PER_BATCH, shuffle=True, num_workers=workers, collate_fn=collate_crops,
        persistent_workers=True,
    )  # fmt: skip

    def dataloader(number: int) -> Iterator[object]:
        dataset.set_pass(number)
        yield from others

    steps = -(-len(data.keys) // IMAGES_PER_BATCH)
    return {
        "ready": lambda number: range(steps),
        "threads": ours("threads"),
        "process": ours("process"),
        "dataloader": dataloader,
    }


@dataclass(frozen=True)
class Steps:
    """What one pass took."""

    rate: float
    """Steps per second."""
    gil_share: float
    wait_share: float


def run(batches: Iterable[object], step: float, held: float) -> Steps:
    """Take a pass. The clock starts when its first batch is there."""
    steps, wall, used, waited, begun, ended = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    for _ in batches:
        started, at = time.perf_counter(), on_a_core_or_waiting_for_one()
        waited += started - ended if steps else 0.0
        begun = begun or started
        compute(held * step)
        wall += time.perf_counter() - started
        used += on_a_core_or_waiting_for_one() - at
        time.sleep((1 - held) * step)
        ended = time.perf_counter()
        steps += 1
    seconds = ended - begun
    return Steps(steps / seconds, 1 - used / wall, waited / seconds)


def compute(seconds: float) -> None:
    """Python for so many CPU seconds of this thread: the lock is given up only where the interpreter makes it."""
    end, total = time.thread_time() + seconds, 0
    while time.thread_time() < end:
        for number in range(1000):
            total += number


def on_a_core_or_waiting_for_one() -> float:
    """Seconds of this thread so far: its CPU time, and on the run queue."""
    with open(f"/proc/self/task/{threading.get_native_id()}/schedstat") as file:  # noqa: PTH123 - 20 us less
        ran, waited, _ = map(int, file.read().split())
    return (ran + waited) / 1e9


def page(result: dict[str, Any]) -> str:
    """The report."""
    rows = [
        f"| {100 * held:.0f} % | {name} | "
        + " | ".join(
            f"{result[f'{what}_{name}_{100 * held:.0f}']:.{digits}f}"
            for what, digits in (("of_ready", 2), ("gil_share", 3), ("wait_share", 2))
        )
        + " |"
        for held in HELD
        for name in SIDES
    ]
    return f"""# The loader and the interpreter's lock

`python -m benchmarks.lock_share --report`, {result["date"]}, commit {result["labelstore_commit"]}, {result["processor"]},
{result["cpus"]} CPUs, Python {result["python"]}, torch {result["torch"]}, load average {result["load_average"]:.1f}; medians of
{result["rounds"]} interleaved rounds of {result["steps_of_pass"]} steps.

A stand-in for a training loop holds the lock so much of each step, and waits without it for the rest. A step takes
{SLACK} x the CPU time of its batch, {result["step_ms"]:.0f} ms ({result["batch"][0]} images of 500 x 375, {result["batch"][1]} crops each); {result["workers"]} thread or worker process makes batches.
Steps per second are relative to the same loop with a batch that is ready; `gil_share` is the share of the loop's Python
in which it had work and no lock, with what a busy machine adds (`ready`'s); `wait_share` is the share of all the time in
which it waited for a batch. What is lost beyond these two is time on the run queue: the loop and whatever makes batches
want cores, which other work had too.

| lock held | batches from | steps per second, of ready | gil_share | wait_share |
|---|---|---|---|---|
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    main()
