"""How fast FKD's files come in: reading them, reading and checking them, and the whole import, per core.

    python -m benchmarks.import_fkd [--images 1024] [--crops 500] [--json]

Files of `benchmarks/label_model.py`'s labels as FKD's generator writes them with today's torch (NumPy arrays, float32, MS
K=5), beside JPEG files of ImageNet's sizes. All figures are processor seconds of one process, page cache warm, rounds
interleaved, the median taken; the bar is `torch.load` of the same files, which runs whatever they name.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import label_model
from labelstore import ImportOptions
from labelstore.exchange import Stated, import_labels
from labelstore.exchange.block_import import TOGETHER
from labelstore.exchange.readers.fkd import open_fkd, read_fkd
from labelstore.images import digest, image_size, scan_folder
from labelstore.untrusted.torch_archive import parse_torch

CLASSES, K = 1000, 5
REPORT = Path(__file__).parent / "reports" / "import_fkd"
TARGET = 2000.0
"""Files of 500 crops per second and core."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=1024)
    options.add_argument("--crops", type=int, default=500)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--report", action="store_true", help="write benchmarks/reports")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.images, args.crops, args.rounds)
    if args.report:
        REPORT.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        REPORT.with_suffix(".md").write_text(markdown(result))
    if not args.json:
        print(markdown(result))
    print(json.dumps(result))


def measure(folder: Path, num_images: int, num_crops: int, rounds: int) -> dict[str, Any]:
    """Files per processor second of every step."""
    write(folder, num_images, num_crops)
    images = scan_folder(folder / "train")
    stated = Stated(compression="ms", num_classes=CLASSES, temperature=1.0)
    source = open_fkd(folder / "fkd", images, stated)
    paths = [source.file_of(row) for row in range(num_images)]
    data = [path.read_bytes() for path in paths]
    sizes = [image_size(images.file(key)) for key in images.keys]

    def imported(dtype: str) -> None:
        store = folder / f"{dtype}.labels"
        shutil.rmtree(store, ignore_errors=True)
        import_labels(
            store,
            format="fkd",
            source=folder / "fkd",
            images=images,
            stated=stated,
            options=ImportOptions(dtype=dtype, images_per_shard=256),
        )

    def every(work: Callable[[int], object]) -> Callable[[], None]:
        def run() -> None:
            for row in range(num_images):
                work(row)

        return run

    def checked() -> None:
        for first in range(0, num_images, TOGETHER):
            rows = range(first, min(first + TOGETHER, num_images))
            if source.read_many(rows, sizes[rows.start : rows.stop]) is None:
                raise RuntimeError("files of the benchmark's own are refused")

    steps: dict[str, Callable[[], None]] = {
        "torch.load": every(lambda row: torch.load(paths[row], weights_only=False)),
        "parse": every(lambda row: parse_torch(data[row])),
        "read": every(lambda row: read_fkd(paths[row])),
        "read and check": checked,
        "image facts": every(lambda row: _image_facts(images.file(images.keys[row]))),
        "import float32": lambda: imported("float32"),
        "import float16": lambda: imported("float16"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.process_time()
            step()
            seconds[name].append(time.process_time() - started)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rates = {name: num_images / second for name, second in median.items()}
    return {
        "images": num_images,
        "crops": num_crops,
        "rounds": rounds,
        "label_model": label_model.NAME,
        "file_bytes": round(statistics.mean(len(one) for one in data)),
        "image_bytes": round(statistics.mean(images.sizes.tolist())),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "files_per_cpu_second": {name: round(rate, 1) for name, rate in rates.items()},
        "reader_ratio_vs_torch_load": round(rates["read"] / rates["torch.load"], 3),
        "checked_share_of_reader": round(rates["read and check"] / rates["read"], 3),
        "import_share_of_reader": {
            dtype: round(rates[f"import {dtype}"] / rates["read"], 3)
            for dtype in ("float32", "float16")
        },
        "import_ratio_vs_torch_load": {
            dtype: round(rates[f"import {dtype}"] / rates["torch.load"], 3)
            for dtype in ("float32", "float16")
        },
        "encode_and_commit_us_per_crop": {
            dtype: round(
                1e6
                * (
                    1 / rates[f"import {dtype}"]
                    - 1 / rates["read and check"]
                    - 1 / rates["image facts"]
                )
                / num_crops,
                2,
            )
            for dtype in ("float32", "float16")
        },
        "target_files_per_s": TARGET,
        "crops_measured": num_images * num_crops,
    }


def write(folder: Path, num_images: int, num_crops: int) -> None:
    """JPEG files and FKD files of one class folder per 256 images."""
    rng = np.random.default_rng(0)
    for first in range(0, num_images, 256):
        count = min(256, num_images - first)
        labels = label_model.labels(first, count, num_crops, k=K, num_classes=CLASSES)
        name = f"n{first:08d}"
        (folder / "train" / name).mkdir(parents=True)
        (folder / "fkd" / name).mkdir(parents=True)
        for at in range(count):
            height, width = (int(side) for side in labels.size[at])
            small = rng.integers(0, 255, (height // 6, width // 6, 3), dtype=np.uint8)
            picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            stem = f"{name}_{at:04d}"
            picture.save(folder / "train" / name / f"{stem}.JPEG", quality=90)
            sides = np.array([height, width, height, width], float)
            value = [
                (labels.box[at] / sides).astype("f4"),
                labels.flip[at].astype(bool),
                np.stack([labels.class_ids[at], labels.probs[at]], 1).astype("f4"),
            ]
            torch.save(value, folder / "fkd" / name / f"{stem}.tar")


def _image_facts(path: Path) -> tuple[tuple[int, int], bytes]:
    data = path.read_bytes()
    return image_size(data), digest(data)


def markdown(result: dict[str, Any]) -> str:
    """The report for people."""
    rates = result["files_per_cpu_second"]
    bar = rates["read"]
    rows = "\n".join(
        f"| {name} | {rate:,.0f} | {1e6 / rate:,.0f} | {rate / bar:.2f} |"
        for name, rate in rates.items()
    )
    shares, work = result["import_share_of_reader"], result["encode_and_commit_us_per_crop"]
    return f"""# Importing FKD's files

{result["images"]:,} files of {result["crops"]} crops (MS, K={K}, float32, {result["file_bytes"]:,} bytes), labels of the model
{result["label_model"]}; processor seconds of one process, warm page cache, median of {result["rounds"]} interleaved rounds.
torch {result["versions"]["torch"]}, NumPy {result["versions"]["numpy"]}, {result["date"]}. The processor was shared with other programs:
compare columns of one run, not runs.

| step | files per CPU second | microseconds per file | of the reader's rate |
|---|---|---|---|
{rows}

- `torch.load` runs what a file names; `read` is this package's reader, which runs nothing and checks the zip's CRC-32:
  {result["reader_ratio_vs_torch_load"]:.2f} of its rate.
- `read and check` is what the import does with {TOGETHER} files at a time.
- The import also reads and hashes every image (`image facts`; {result["image_bytes"]:,} bytes on average), turns boxes into pixels, checks every number, encodes,
  compresses, syncs and commits: {shares["float32"]:.2f} of the reader's rate with `--dtype float32`, {shares["float16"]:.2f} with
  float16.
- What is left after reading, checking and the images is the store's own work on labels, encoding, zstd and the commit:
  {work["float32"]:.1f} microseconds per crop with float32, {work["float16"]:.1f} with float16. That, not the reader, is the limit; it is
  divided among processes with `--workers N`.
- Asked for are {result["target_files_per_s"]:,.0f} files per second and core, or what the reader allows: {rates["read and check"]:,.0f} are read and
  checked, {rates["import float32"]:,.0f} are in the store. The import of {result["images"]:,} files includes the making of the store.

    python -m benchmarks.import_fkd --report
"""


if __name__ == "__main__":
    main()
