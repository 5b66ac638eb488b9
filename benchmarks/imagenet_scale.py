"""The store at ImageNet's size, beside FKD's files, HDF5, LMDB and Parquet: bytes, seconds, memory, in one run.

    python -m benchmarks.imagenet_scale [--images 1281167] [--crops 200] [--work DIR] [--report] [--json]

Labels come from `benchmarks/label_model.py`; stores are written through the real write path (leases, fsync, ledger).
`--work DIR` keeps the stores, and a run that was stopped goes on there. The other layouts hold the first 20,000
images of the same labels. `--report` writes benchmarks/reports/imagenet_scale.json and .md, with the number of crops in their name where it is not 200. At full size: 9 GB on disk
for the stores, 12 GB for the draw file while it is measured, about 40 minutes on one idle core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import labelstore
from benchmarks import label_model
from benchmarks.layouts import IN_USE, measure
from benchmarks.layouts.pickles import Fkd
from benchmarks.layouts.tables import Parquet
from benchmarks.machine import commit, processor
from benchmarks.scale_report import markdown
from benchmarks.scale_store import SEEDED, STORED, K, WriteTimes, build
from labelstore.analysis import disk
from labelstore.arrays.sharding import index_bytes
from labelstore.store import Store

IMAGENET, CROPS = 1_281_167, 200
COMPARED_IMAGES = 20_000
CROPS_PER_IMAGE = 4
BLOCK = 1024
MEASURED = (
    ("open", "float16"),
    ("random_image", "float16"),
    ("pass", "float16"),
    ("stats", "float16"),
    ("calibrate", "float16"),
    ("draw_file", "float16"),
    ("stats", "uint8"),
)
"""In this order: the draw file needs the mask that `calibrate` makes."""
SMALL_IMAGES = 8 * BLOCK
"""A store of so many images is measured too, as many blocks as the summary of `stats` samples: what the large one
takes beyond that grows with the crops, the rest is the same for every store."""
GROWING = ("stats", "calibrate")
REPORTS = Path(__file__).parent / "reports"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=IMAGENET)
    options.add_argument("--crops", type=int, default=CROPS)
    options.add_argument("--work", type=Path, help="keep stores here, and go on with what is there")
    options.add_argument("--compared-images", type=int, default=COMPARED_IMAGES)
    options.add_argument("--report", action="store_true", help="write benchmarks/reports/")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    if min(args.images, args.crops, args.compared_images) < 1:
        options.error("--images, --crops and --compared-images: at least 1 of each")
    if args.work is None:
        with tempfile.TemporaryDirectory(prefix="imagenet-scale-") as folder:
            result = run(Path(folder), args.images, args.crops, args.compared_images)
    else:
        result = run(args.work, args.images, args.crops, args.compared_images)
    if args.report:
        name = "imagenet_scale" if args.crops == CROPS else f"imagenet_scale_{args.crops}"
        (REPORTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        (REPORTS / f"{name}.md").write_text(markdown(result))
    if args.json:
        print(json.dumps(result, separators=(",", ":")))
    else:
        print(markdown(result))


def run(folder: Path, num_images: int, num_crops: int, compared: int) -> dict[str, Any]:
    """Build, measure, compare; everything that the report says, flat keys for the figures that are targets."""
    times = build(folder, num_images, num_crops, _told)
    sizes = _sizes(folder)
    measured = {
        f"{name}_{label_set}".removesuffix("_float16"): _kept(
            folder,
            f"{name}_{label_set}",
            lambda name=name, label_set=label_set: _in_a_process(name, folder / STORED, label_set),
        )
        for name, label_set in MEASURED
    }
    if num_images > SMALL_IMAGES:
        measured |= _small(folder, num_crops)
    others = _others(folder, min(compared, num_images), num_crops)
    fkd = max(row["pass_crops_per_s"] for row in others if row["layout"].startswith("FKD"))
    return {
        "images": num_images,
        "crops": num_crops,
        "label_model": label_model.NAME,
        "distinct_ids_per_image_mean": round(_distinct(num_images, num_crops), 1),
        "bytes_per_crop_float16": sizes["float16"]["total"],
        "bytes_per_crop_uint8": sizes["uint8"]["total"],
        "bytes_per_crop_seeded_uint8": sizes["seeded_uint8"]["total"],
        "write_crops_per_s": times.crops_per_s(STORED, "float16"),
        "pass_seconds": measured["pass"]["seconds"],
        "pass_mb": measured["pass"]["peak_mb"] - measured["pass"]["start_mb"],
        "pass_ratio_vs_fkd": measured["pass"]["crops_per_s"] / fkd,
        "draw_file_seconds": measured["draw_file"]["seconds"],
        "stats_ratio_vs_decode": measured["stats"]["ratio"],
        "calibrate_ratio_vs_decode": measured["calibrate"]["ratio"],
        "random_image_ms": measured["random_image"]["all_crops_cpu_ms"],
        **{
            f"{name}_{key}": value
            for name in GROWING
            if f"{name}_small" in measured
            for key, value in growth(measured[name], measured[f"{name}_small"]).items()
        },
        "bytes_per_crop": sizes,
        "write": _write_rates(times),
        "measured": measured,
        "others": others,
        "setting": _setting(),
    }


def _small(folder: Path, num_crops: int) -> dict[str, dict[str, Any]]:
    """What grows with the crops, measured in a store of few blocks."""
    small = folder / "small"
    build(small, SMALL_IMAGES, num_crops, lambda done, total: None)
    return {
        f"{name}_small": _kept(
            folder,
            f"{name}_small",
            lambda name=name: _in_a_process(name, small / STORED, "float16"),
        )
        for name in GROWING
    }


def growth(large: dict[str, Any], small: dict[str, Any]) -> dict[str, float]:
    """CPU seconds as a line over those of the bare decode: how steep it is, and what an empty store would take."""
    more = large["seconds"] - small["seconds"]
    steep = more / (large["decode_seconds"] - small["decode_seconds"])
    fixed = small["seconds"] - steep * small["decode_seconds"]
    return {"ratio_of_further_crops": steep, "fixed_seconds": fixed}


def _kept(folder: Path, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured before in this folder, or now: a run that was stopped does not begin again."""
    path = folder / "measured" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        found = work()
        path.write_text(json.dumps(found))
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept


def _told(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"image block {done} of {total}", file=sys.stderr, flush=True)


def _in_a_process(name: str, store: Path, label_set: str) -> dict[str, Any]:
    print(f"measuring {name}, {label_set}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.scale_measures", name, str(store)]
    done = subprocess.run(
        [*command, "--label-set", label_set],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _sizes(folder: Path) -> dict[str, dict[str, float]]:
    """Bytes per crop of each label set's whole store, and what they consist of."""
    found = {}
    with labelstore.open(folder / STORED, readonly=True) as store:
        for name in ("float16", "uint8"):
            found[name] = _size(store, name)
    with labelstore.open(folder / SEEDED, readonly=True) as store:
        found["seeded_uint8"] = _size(store, "uint8")
    return found


def _size(store: Store, label_set: str) -> dict[str, float]:
    """Files of the label set and of its boxes; of metadata and catalogue the store's whole, other label sets included."""
    groups = [f"labels/{label_set}"]
    groups += [f"crops/{store.plan().name}"] if store.plan().stored else []
    crops = store.num_images * store.num_crops
    arrays: dict[str, float] = {}
    indexes = 0
    for group in groups:
        for row in store.catalogue.ledger.shards(group):
            for file in row.files:
                ((path, chunks),) = file.chunks.items()
                index = index_bytes(len(chunks))
                indexes += index
                arrays[path.rpartition("/")[2]] = (
                    arrays.get(path.rpartition("/")[2], 0) + file.size - index
                )
    storage = disk.storage(store)
    parts = {
        **arrays,
        "indexes": indexes,
        "metadata": storage.metadata_bytes,
        "catalogue": storage.catalogue_bytes or 0,
    }
    per_crop = {name: round(size / crops, 4) for name, size in parts.items()}
    return {**per_crop, "total": round(sum(parts.values()) / crops, 4)}


def _write_rates(times: WriteTimes) -> dict[str, float]:
    rates = {name: times.crops / seconds for name, seconds in times.write_seconds.items()}
    return {**rates, "label model (no part of writing)": times.crops / times.model_seconds}


def _others(folder: Path, num_images: int, num_crops: int) -> list[dict[str, Any]]:
    @lru_cache(maxsize=32)
    def part(first: int) -> label_model.ModelLabels:
        return label_model.labels(first, min(BLOCK, num_images - first), num_crops, k=K)

    def parts() -> Iterator[tuple[range, label_model.ModelLabels]]:
        for first in range(0, num_images, BLOCK):
            labels = part(first)
            yield range(first, first + len(labels.size)), labels

    found = []
    for number, layout in enumerate(IN_USE):
        print(f"measuring {layout.name}", file=sys.stderr, flush=True)
        there = folder / "others" / ("fkd" if isinstance(layout, Fkd) else str(number))
        found.append(
            _kept(
                folder,
                f"layout {number}",
                lambda layout=layout, there=there: measure(
                    layout,
                    there,
                    parts,
                    num_images=num_images,
                    num_crops=num_crops,
                    crops_per_image=CROPS_PER_IMAGE,
                    samples=40 if isinstance(layout, Parquet) else 2000,
                ),
            )
        )
    shutil.rmtree(folder / "others", ignore_errors=True)
    return found


def _distinct(num_images: int, num_crops: int) -> float:
    labels = label_model.labels(0, min(BLOCK, num_images), num_crops, k=K)
    return float(np.mean([len(np.unique(ids)) for ids in labels.class_ids]))


def _setting() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "versions": {
            name: version(name)
            for name in (
                "labelstore",
                "numpy",
                "numcodecs",
                "zarr",
                "torch",
                "h5py",
                "lmdb",
                "pyarrow",
            )
        },
    }


if __name__ == "__main__":
    main()
