"""SQL over the crops of a store against a bare decode of the same arrays.

    python -m benchmarks.sql [--images 51200] [--crops 200] [--folder DIR] [--rounds 3] [--json]

The store is made from the label model (`benchmarks/label_model.py`) through the real write path, in a temporary folder
unless one is named. Every query is timed beside reading and decoding the columns that it needs, from start to end,
with nothing done to them; page cache warm, medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import labelstore
from benchmarks import label_model
from benchmarks.scale_store import STORED, build
from labelstore.blocks.crop_slab import CropSlab, slabs

QUERIES = {
    "group_by_class": (
        "select class, count(*), avg(max_probability) from crops_float16 group by class",
        ("class", "max_probability"),
    ),
    "histogram": (
        "select floor(max_probability * 20) b, count(*) from crops_float16 group by b",
        ("max_probability",),
    ),
    "confusion": (
        "select class, top1, count(*) from crops_float16 where not agrees group by all",
        ("class", "top1", "agrees"),
    ),
    "area_and_entropy": (
        "select floor(area * 10) a, avg(entropy) from crops_float16 group by a",
        ("area", "entropy"),
    ),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=51_200)
    options.add_argument("--crops", type=int, default=200)
    options.add_argument("--folder", type=Path, help="where the store is, or is made")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    if args.folder is not None:
        result = measure(args.folder, args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(Path(folder), args)
    if args.json:
        print(json.dumps(result, separators=(",", ":")))
        return
    print(f"{result['images']:,} images x {result['crops']} crops, {label_model.NAME}")
    for name, found in result["queries"].items():
        print(
            f"{name:20s}{found['seconds']:7.2f} s   decode {found['decode_seconds']:6.2f} s   "
            f"{found['ratio_vs_decode']:5.2f}x"
        )


def measure(folder: Path, args: argparse.Namespace) -> dict[str, object]:
    build(folder, args.images, args.crops, progress)
    with labelstore.open(folder / STORED, readonly=True) as store:
        found = {}
        for name, (query, columns) in QUERIES.items():
            decode(store, columns)  # warms the page cache
            queried, decoded = [], []
            for _ in range(args.rounds):
                queried.append(timed(lambda query=query: labelstore.sql(store, query)))
                decoded.append(timed(lambda columns=columns: decode(store, columns)))
            seconds, bare = statistics.median(queried), statistics.median(decoded)
            found[name] = {
                "seconds": round(seconds, 3),
                "decode_seconds": round(bare, 3),
                "ratio_vs_decode": round(seconds / bare, 2),
            }
    return {
        "images": args.images,
        "crops": args.crops,
        "label_model": label_model.NAME,
        "queries": found,
        "group_by_seconds": found["group_by_class"]["seconds"],
    }


def decode(store: labelstore.Store, columns: tuple[str, ...]) -> None:
    labels = store.label_set("float16")
    for block in labels.blocks:
        for part in slabs(labels):
            slab = CropSlab(labels, block, part, wanted=columns)
            for name in columns:
                slab[name]


def timed(work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def progress(done: int, total: int) -> None:
    print(f"\rimage blocks {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


if __name__ == "__main__":
    main()
