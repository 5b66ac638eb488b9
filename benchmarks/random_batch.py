"""A random batch by a sampler of one's own: `recover`, `batch`, `unpacked().batch` and a bare `np.memmap`, CPU seconds.

    python -m benchmarks.random_batch [--images 8192] [--crops 200] [--rounds 5] [--folder DIR] [--report] [--json]

A batch is 256 random images x 4 random crops, K = 5, and every engine is asked for the same ones, in interleaved rounds;
figures are medians. The store is made from the label model (`benchmarks/label_model.py`) through the real write path.
`memmap` is the file of flat records that `unpacked` wrote, indexed the fastest way that NumPy has: records as bytes
without fields, copied and not looked at. CPU seconds are the process's own, of all its threads; the page cache is warm.
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

import numpy as np

import labelstore
from benchmarks import label_model
from benchmarks.machine import commit, processor
from benchmarks.scale_store import STORED, build

REPORT = Path(__file__).parent / "reports" / "random_batch"
IMAGES, CROPS = 256, 4
BATCHES = 32
"""Of one engine in one round."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=8192)
    options.add_argument("--crops", type=int, default=200)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path, help="where the store is, or is made")
    options.add_argument("--report", action="store_true", help=f"write {REPORT}.md and .json")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(args.folder or Path(temporary), args.images, args.crops, args.rounds)
    if args.report:
        REPORT.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        REPORT.with_suffix(".md").write_text(page(result))
    if args.json:
        print(json.dumps(result, separators=(",", ":")))
    else:
        print(page(result))


def measure(folder: Path, images: int, crops: int, rounds: int) -> dict[str, object]:
    build(folder, images, crops, lambda done, of: print(f"{done}/{of}", file=sys.stderr))
    with labelstore.open(folder / STORED) as store:
        per = {name: of_label_set(store, name, rounds) for name in ("float16", "uint8")}
    first = per["float16"]
    return {
        **{name: first[name] for name in KEYS},
        **{f"{name}_uint8": value for name, value in per["uint8"].items()},
        "recover_crops_per_cpu_s": first["recover_crops_per_cpu_s"],
        "memmap_crops_per_cpu_s": first["memmap_crops_per_cpu_s"],
        "memmap_by_field_crops_per_cpu_s": first["memmap_by_field_crops_per_cpu_s"],
        "cold_batch_crops_per_cpu_s": first["cold_batch_crops_per_cpu_s"],
        "images": images,
        "crops": crops,
        "batch": [IMAGES, CROPS],
        "label_model": label_model.NAME,
        "rounds": rounds,
        "processor": processor(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "labelstore_commit": commit(),
        "date": date.today().isoformat(),
    }


KEYS = (
    "batch_crops_per_cpu_s",
    "unpacked_crops_per_cpu_s",
    "unpacked_share_of_memmap",
    "unpacked_bytes_per_crop",
    "unpack_crops_per_cpu_s",
)


def of_label_set(store: labelstore.Store, name: str, rounds: int) -> dict[str, float]:
    labels = store.label_set(name)
    total = store.num_images * store.num_crops
    rng = np.random.default_rng(0)
    drawn = [
        (
            rng.integers(0, store.num_images, IMAGES),
            np.argsort(rng.random((IMAGES, store.num_crops)), axis=1)[:, :CROPS],
        )
        for _ in range(BATCHES)
    ]
    unpacking = []
    for _ in range(rounds):
        # laid out again each time; the last copy stays
        with tempfile.TemporaryDirectory() as scratch:
            begun = time.process_time()
            labels.unpacked(scratch).close()
            unpacking.append(total / (time.process_time() - begun))
    with tempfile.TemporaryDirectory() as scratch:
        flat = labels.unpacked(scratch)
        by_field = np.load(flat.path / "crops.npy", mmap_mode="r")
        plain = np.asarray(by_field).view(f"V{by_field.dtype.itemsize}")
        engines: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
            "batch": labels.batch,
            "unpacked": flat.batch,
            "memmap": lambda rows, crops: plain[rows[:, None], crops],
            "memmap_by_field": lambda rows, crops: by_field[rows[:, None], crops],
        }
        cold = rate(labels.batch, drawn)
        for engine in engines.values():
            rate(engine, drawn)  # the cache of chunks and the page cache are warm from here on
        rates: dict[str, list[float]] = {engine: [] for engine in engines}
        for _ in range(rounds):
            for engine, ask in engines.items():
                rates[engine].append(rate(ask, drawn))
        recover = rate(labels.recover, drawn[:2])
        median = {engine: statistics.median(values) for engine, values in rates.items()}
        bytes_per_crop = flat.bytes_per_crop
        flat.close()
    return {
        **{f"{engine}_crops_per_cpu_s": round(value) for engine, value in median.items()},
        "cold_batch_crops_per_cpu_s": round(cold),
        "recover_crops_per_cpu_s": round(recover),
        "unpacked_share_of_memmap": round(median["unpacked"] / median["memmap"], 3),
        "unpacked_bytes_per_crop": bytes_per_crop,
        "unpack_crops_per_cpu_s": round(statistics.median(unpacking)),
    }


def rate(
    ask: Callable[[np.ndarray, np.ndarray], object], batches: list[tuple[np.ndarray, np.ndarray]]
) -> float:
    """Crops per CPU second."""
    begun = time.process_time()
    for rows, crops in batches:
        ask(rows, crops)
    return len(batches) * IMAGES * CROPS / (time.process_time() - begun)


ROWS = {
    "recover_crops_per_cpu_s": "`recover` (dense)",
    "cold_batch_crops_per_cpu_s": "`batch`, its first 32 batches, chunks decoded on the way",
    "batch_crops_per_cpu_s": "`batch`, chunks in its cache",
    "unpacked_crops_per_cpu_s": "`unpacked().batch`",
    "memmap_by_field_crops_per_cpu_s": "np.memmap of the same records, structured",
    "memmap_crops_per_cpu_s": "np.memmap of the same records, as bytes",
    "unpacked_share_of_memmap": "`unpacked().batch` as a share of the latter",
    "unpacked_bytes_per_crop": "bytes per crop on scratch",
    "unpack_crops_per_cpu_s": "crops laid out per CPU second",
}


def page(result: dict[str, object]) -> str:
    def shown(value: object) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"

    lines = [
        f"| {text} | {shown(result[key])} | {shown(result[f'{key}_uint8'])} |"
        for key, text in ROWS.items()
    ]
    return "\n".join(
        [
            "# A random batch by a sampler of one's own",
            "",
            f"`python -m benchmarks.random_batch --report`, {result['date']}, commit {result['labelstore_commit']},",
            f"{result['processor']}, {result['cpus']} CPUs, Python {result['python']}, NumPy {result['numpy']}.",
            f"The machine was shared with other work (load average {result['load_average']:.1f}): figures are CPU seconds,",
            f"medians of {result['rounds']} interleaved rounds; the share is what carries over to another machine.",
            "",
            f"Label model {result['label_model']}: {result['images']:,} images x {result['crops']} crops, K = 5.",
            f"A batch is {IMAGES} random images x {CROPS} random crops; figures are crops per CPU second unless they say",
            "otherwise.",
            "",
            "| | float16 | uint8 |",
            "|---|---|---|",
            *lines,
            "",
            "`batch` decodes a chunk (about 20,000 crops) for the first crop that is asked of it and keeps it, up to 512 MB:",
            "about 17 million crops at K = 5. Beyond that a random crop costs a chunk again, and `unpacked` is the way.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
