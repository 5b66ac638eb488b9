"""Labels of a run's passes from object storage and from a disk: requests, bytes, and what training waits.

    python -m benchmarks.remote_labels [--images 32768] [--crops 40] [--passes 6] [--delay-ms 20] [--step-ms 2000] [--json]

The store of the label model is frozen, and served over HTTP on this machine with a delay for each request. A run draws
m = 4 crops of each image per pass; a chunk column serves several passes. `laid_out_s` is the time to lay out all passes
one after another; `run_s` is a run's, whose training is a sleep and whose next pass is prepared in the background, as
`trainer run` does. `random_batch_s` is one batch of 256 random images x 4 random crops, nothing read before. `read_vs_due` compares the bytes read with those of the chunks that the passes are made of.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import labelstore
from benchmarks import label_model
from benchmarks.compare import drawn
from benchmarks.layouts.ours import Ours
from benchmarks.layouts.served import served
from benchmarks.scale_store import STORED
from labelstore.store import LabelSet
from trainer.loader.stored import StoredPasses
from trainer.sampler import PassSchedule

CROPS_PER_IMAGE = 4


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=32768)
    options.add_argument("--crops", type=int, default=40)
    options.add_argument("--passes", type=int, default=6)
    options.add_argument("--delay-ms", type=float, default=20)
    options.add_argument("--step-ms", type=float, default=2000, help="a pass of the training loop")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args)
    if args.json:
        print(json.dumps(result, separators=(",", ":")))
        return
    for name, value in result.items():
        print(f"{name:28s}{value}")


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    layout = Ours()
    layout.write(folder, label_model.parts(args.images, args.crops), args.images)
    layout.prepare_remote(folder)
    with labelstore.open(folder / STORED) as store:
        local = passes(store.label_set(), args, folder)
        due = chunk_bytes(store.label_set(), args.passes)
    with (
        served(folder, args.delay_ms / 1000) as server,
        labelstore.open(f"{server.url}/{STORED}", cache=folder / "cache") as store,
    ):
        server.reset()
        remote = passes(store.label_set(), args, folder)
        # both ways of running read everything once
        requests, read = server.requests / 2, server.bytes / 2
    with (
        served(folder, args.delay_ms / 1000) as server,
        labelstore.open(f"{server.url}/{STORED}", cache=folder / "cache") as store,
    ):
        labels = store.label_set()
        server.reset()
        begun = time.perf_counter()
        labels.batch(*drawn(args.images, args.crops, 1)[0])
        batch_s, batch_requests = time.perf_counter() - begun, server.requests
        at_once = server.most_under_way
    return {
        "images": args.images,
        "crops": args.crops,
        "passes": args.passes,
        "request_ms": args.delay_ms,
        "local_laid_out_s": local["laid_out_s"],
        "remote_laid_out_s": remote["laid_out_s"],
        "local_run_s": local["run_s"],
        "remote_run_s": remote["run_s"],
        "remote_run_vs_local": round(remote["run_s"] / local["run_s"], 3),
        "requests": round(requests),
        "read_mb": round(read / 1e6, 2),
        "read_vs_due": round(read / due, 3),
        "random_batch_s": round(batch_s, 2),
        "random_batch_requests": batch_requests,
        "random_batch_requests_at_once": at_once,
        "load_average": round(os.getloadavg()[0], 1),
    }


def passes(labels: LabelSet, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds to lay out all passes one after another, and of a run that trains meanwhile."""
    schedule = PassSchedule.of(passes=args.passes, crops_per_image=CROPS_PER_IMAGE)

    def run(work_s: float) -> float:
        with StoredPasses(labels, schedule=schedule, scratch=folder) as source:
            begun = time.perf_counter()
            for index in range(args.passes):
                source.pass_labels(index)
                source.prepare_later(index + 1)
                time.sleep(work_s)
            return round(time.perf_counter() - begun, 3)

    return {"laid_out_s": run(0), "run_s": run(args.step_ms / 1000)}


def chunk_bytes(labels: LabelSet, num_passes: int) -> int:
    """Bytes of the chunk columns that hold so many passes' crops, compressed, by the ledger."""
    columns = -(-num_passes * CROPS_PER_IMAGE // labels.plan.crops_per_chunk)
    share = columns * labels.plan.crops_per_chunk / labels.plan.num_crops
    shards = labels.store.shards()
    return int(share * shards["bytes"].sum())


if __name__ == "__main__":
    main()
