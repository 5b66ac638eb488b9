"""This store beside what labels are kept in elsewhere: the same labels, every layout at what its authors recommend.

    python -m benchmarks.compare [--images 8192] [--crops 200] [--rounds 5] [--only NAME ...] [--kills 5] [--flips 100]
                                 [--teacher FOLDER] [--report] [--resume] [--json]

The labels are the label model's (`benchmarks/label_model.py`) or, with `--teacher`, those of a real ImageNet teacher
(`benchmarks/real_labels.py`; its weights and its labels are kept in FOLDER), K = 5. Each layout holds ids, probabilities, boxes
and flips; the store also keeps the tail. What is measured, per layout:

- bytes per crop, everything on disk included; files, and how many there would be for ImageNet's 1,281,167 images;
- writing: crops per CPU second, and per second until it is all on disk (`sync` included);
- a sequential pass: everything read once, crops per CPU second, page cache warm;
- a random batch by a sampler of one's own: 256 random images x 4 random crops, the same for all, in interleaved rounds;
- the same with a cold page cache: the files' pages are given up first, and what the kernel then read is counted;
- the same over HTTP with 20 ms for each request, where the layout's library can: requests and bytes of a batch;
- the share of images that `kill -9` of a writer loses, of those that it had taken and asked for more;
- of single flipped bits (100 unless told), how many a full read notices (an error), and how many give other values without one; the
  rest change no value (free space, metadata that this read does not need);
- the time to open.

CPU seconds are the process's, of all its threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import label_model
from benchmarks.label_model import ModelLabels
from benchmarks.layouts import LAYOUTS, check, disk
from benchmarks.layouts.base import Layout, Reader
from benchmarks.layouts.harm import flipped, lost_by_kills
from benchmarks.layouts.served import served
from benchmarks.machine import commit, processor

REPORTS = Path(__file__).parent / "reports"
IMAGENET = 1_281_167
IMAGES, CROPS = 256, 4
"""Of a random batch."""
BATCHES = 8
"""Of one layout in one round; one cold batch, and one over HTTP, since those are seconds."""
PART = 1024
"""Images that a writer is handed at a time: an image block of ours."""
DELAY_S = 0.02
Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=8192)
    options.add_argument("--crops", type=int, default=200)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", nargs="*", default=[], help="parts of layouts' names")
    options.add_argument("--kills", type=int, default=5)
    options.add_argument("--flips", type=int, default=100)
    options.add_argument(
        "--teacher", type=Path, help="a real teacher's labels, kept in this folder"
    )
    options.add_argument("--report", action="store_true", help="write benchmarks/reports/")
    options.add_argument(
        "--resume", action="store_true", help="kills and flipped bits that the report lacks, alone"
    )
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    report = REPORTS / ("compare_teacher" if args.teacher else "compare")
    chosen = [
        layout
        for layout in LAYOUTS
        if not args.only or any(part.lower() in layout.name.lower() for part in args.only)
    ]
    if not chosen or min(args.images, args.crops - CROPS + 1, args.rounds) < 1:
        names = ", ".join(layout.name for layout in LAYOUTS)
        options.error(
            f"--images and --rounds at least 1, --crops at least {CROPS}, --only of {names}"
        )
    with tempfile.TemporaryDirectory() as folder:
        if args.resume:
            result = json.loads(report.with_suffix(".json").read_text())
        else:
            result = compare(chosen, Path(folder), args)
        rows = {row["layout"]: row for row in result["layouts"]}
        for layout in chosen:
            if args.report:
                keep(result, report)  # as far as it is known: a run that is stopped can be resumed
            if layout.name in rows and "flips" not in rows[layout.name] and not args.teacher:
                rows[layout.name] |= harmed(layout, Path(folder) / "harm", args.kills, args.flips)
    if args.report or args.resume:
        keep(result, report)
    print(json.dumps(result, separators=(",", ":")) if args.json else page(result))


def keep(result: dict[str, Any], report: Path) -> None:
    """Write the report as far as it is known."""
    report.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    report.with_suffix(".md").write_text(page(result))


def compare(layouts: list[Layout], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write all layouts, then read them in interleaved rounds; a row of figures for each."""
    images, crops, rounds = args.images, args.crops, args.rounds
    name, parts = label_parts(args.teacher, images, crops)
    rows, readers = [], []
    for number, layout in enumerate(layouts):
        said(f"writing {layout.name}")
        there = folder / str(number)
        cpu, begun = time.process_time(), time.perf_counter()
        layout.write(there, parts, images)
        os.sync()
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
        size = disk(layout, there)
        begun = time.perf_counter()
        reader = layout.reader(there)
        opening = time.perf_counter() - begun
        check(reader, parts)
        readers.append(reader)
        rows.append(
            {
                "layout": layout.name,
                "note": layout.note,
                "versions": layout.versions,
                "bytes_per_crop": round(size["bytes"] / images / crops, 2),
                "files": size["files"],
                "files_of_imagenet": round(size["files"] * IMAGENET / images)
                if layout.files_grow
                else size["files"],
                "write_crops_per_cpu_s": round(images * crops / cpu),
                "write_crops_per_s": round(images * crops / wall),
                "open_ms": round(1e3 * opening, 2),
            }
        )
    batches = drawn(images, crops, BATCHES + 1)
    for name, measured in (
        ("sequential_crops_per_cpu_s", lambda reader: sequential(reader, images, crops)),
        ("batch_crops_per_cpu_s", lambda reader: batched(reader, batches[:BATCHES])),
    ):
        rates: list[list[float]] = [[] for _ in layouts]
        for done in range(rounds + 1):
            said(f"{name}, round {done} of {rounds}")
            for layout, reader, found in zip(layouts, readers, rates, strict=True):
                if layout.random_access or name.startswith("sequential"):
                    rate = measured(reader)
                    found.extend([rate] if done else [])  # the first round warms caches
        for row, found in zip(rows, rates, strict=True):
            row[name] = round(statistics.median(found)) if found else None
    for number, (layout, reader, row) in enumerate(zip(layouts, readers, rows, strict=True)):
        reader.close()
        said(f"cold and over HTTP: {layout.name}")
        there = folder / str(number)
        row |= cold(layout, there, batches[-1]) if layout.random_access else {}
        row |= remote(layout, there, batches[-1], images) if layout.random_access else {}
    return {
        "layouts": rows,
        "images": images,
        "crops": crops,
        "batch": [IMAGES, CROPS],
        "labels": name,
        "rounds": rounds,
        "request_ms": round(1e3 * DELAY_S),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "labelstore_commit": commit(),
        "date": date.today().isoformat(),
    }


def label_parts(
    teacher: Path | None, images: int, crops: int
) -> tuple[str, list[tuple[range, ModelLabels]]]:
    """What the labels are called, and the labels in the parts that writers are handed."""
    if teacher is None:
        return f"label model {label_model.NAME}", list(label_model.parts(images, crops, PART))
    from benchmarks import real_labels

    found = vars(real_labels.as_model(teacher, images, crops))
    rows = [range(first, min(first + PART, images)) for first in range(0, images, PART)]
    return f"labels of {real_labels.TEACHER} on pictures of photographed objects", [
        (
            part,
            ModelLabels(**{name: values[part.start : part.stop] for name, values in found.items()}),
        )
        for part in rows
    ]


def harmed(layout: Layout, folder: Path, kills: int, flips: int) -> dict[str, Any]:
    """What killed writers lose, and how many flipped bits a full read notices."""
    said(f"kills and flipped bits: {layout.name}")
    found = (
        flipped(layout, folder / f"{layout.name}-flips".replace(" ", "-"), flips) if flips else {}
    )
    return {
        "killed_lost": round(lost_by_kills(layout, folder / "kills", kills), 3)
        if kills and not layout.is_a_copy
        else None,
        "flips": flips,
        "flips_noticed": found.get("noticed", 0),
        "flips_wrong": found.get("wrong", 0),
    }


def sequential(reader: Reader, images: int, crops: int) -> float:
    """Crops per CPU second of everything, read once; every field is looked at."""
    begun = time.process_time()
    seen = sum(part[0].size for part in reader.everything(images))
    spent = time.process_time() - begun
    assert seen == images * crops * 5, "a layout that does not read everything"
    return images * crops / spent


def batched(reader: Reader, batches: list[Batch]) -> float:
    """Crops per CPU second of random batches."""
    begun = time.process_time()
    for rows, crops in batches:
        reader.batch(rows, crops)
    return len(batches) * IMAGES * CROPS / (time.process_time() - begun)


def cold(layout: Layout, folder: Path, batch: Batch) -> dict[str, Any]:
    """One batch after the kernel gave up the pages of all its files: ms, and megabytes read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
    before = read_bytes()
    reader = layout.reader(folder)
    begun = time.perf_counter()
    reader.batch(*batch)
    spent = time.perf_counter() - begun
    reader.close()
    return {
        "cold_batch_ms": round(1e3 * spent, 1),
        "cold_batch_mb": round((read_bytes() - before) / 1e6, 2),
    }


def read_bytes() -> int:
    """Bytes that this process has read from disks, not from the page cache."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def remote(layout: Layout, folder: Path, batch: Batch, images: int) -> dict[str, Any]:
    """One batch over HTTP, after opening: requests, megabytes, seconds; empty where the library cannot."""
    layout.prepare_remote(folder)
    with served(folder, DELAY_S) as server, tempfile.TemporaryDirectory() as cache:
        reader = layout.remote_reader(server.url, Path(cache), images)
        if reader is None:
            return {}
        opening = server.requests
        server.reset()
        begun = time.perf_counter()
        reader.batch(*batch)
        spent = time.perf_counter() - begun
        found = {
            "remote_open_requests": opening,
            "remote_requests": server.requests,
            "remote_mb": round(server.bytes / 1e6, 2),
            "remote_batch_s": round(spent, 2),
        }
        reader.close()
        return found


def drawn(images: int, crops: int, count: int) -> list[Batch]:
    """Random images, and random distinct crops of each."""
    rng = np.random.default_rng(0)
    return [
        (
            rng.integers(0, images, IMAGES),
            np.argsort(rng.random((IMAGES, crops)), axis=1)[:, :CROPS],
        )
        for _ in range(count)
    ]


def said(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "B per crop": lambda row: f"{row['bytes_per_crop']:.1f}",
    "files for ImageNet": lambda row: f"{row['files_of_imagenet']:,}",
    "write": lambda row: rate(row["write_crops_per_cpu_s"]),
    "sequential": lambda row: rate(row["sequential_crops_per_cpu_s"]),
    "random batch": lambda row: rate(row["batch_crops_per_cpu_s"]),
    "cold, ms": lambda row: number(row.get("cold_batch_ms")),
    "cold, MB read": lambda row: number(row.get("cold_batch_mb")),
    "HTTP requests": lambda row: number(row.get("remote_requests")),
    "HTTP MB": lambda row: number(row.get("remote_mb")),
    "HTTP s": lambda row: number(row.get("remote_batch_s")),
    "open, ms": lambda row: number(row["open_ms"]),
    "lost by kills": lambda row: number(row.get("killed_lost"), 100, " %"),
    "flips noticed": lambda row: number(row.get("flips_noticed")),
    "flips unnoticed": lambda row: number(row.get("flips_wrong")),
}


def rate(value: float | None) -> str:
    """Crops per second, shortened."""
    if value is None:
        return "-"
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def number(value: float | None, factor: float = 1, end: str = "") -> str:
    """A number with three figures; "-" for what was not measured."""
    return "-" if value is None else f"{factor * value:,.3g}{end}"


def page(result: dict[str, Any]) -> str:
    """The report in Markdown."""
    batch = " x ".join(map(str, result["batch"]))
    head = " | ".join(["layout", *COLUMNS])
    lines = [
        "# Labels in this store and in other layouts",
        "",
        f"`make compare`, {result['date']}, commit {result['labelstore_commit']}, {result['processor']},",
        f"{result['cpus']} CPUs, Python {result['python']}; load average {result['load_average']}: other work shared the machine, so",
        f"rates are per CPU second, medians of {result['rounds']} interleaved rounds.",
        "",
        f"{result['labels'].capitalize()}, {result['images']:,} images x {result['crops']} crops, K = 5; a random batch is {batch}",
        f"crops; HTTP from this machine with {result['request_ms']} ms for each request. What each column is:",
        "[benchmarks/compare.py](../compare.py).",
        f"Bits were flipped {result['layouts'][0].get('flips', 0)} times per layout; - is what was not measured.",
        "",
        f"| {head} |",
        "|" + "---|" * (len(COLUMNS) + 1),
        *(
            f"| {row['layout']} | " + " | ".join(shown(row) for shown in COLUMNS.values()) + " |"
            for row in result["layouts"]
        ),
        "",
        "| layout | versions | how |",
        "|---|---|---|",
        *(f"| {r['layout']} | {r['versions']} | {r['note']} |" for r in result["layouts"]),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
