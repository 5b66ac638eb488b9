"""A whole labelling job on many GPUs, on paper: what each part of it can do, what it is asked for, which one is full first.

    python -m benchmarks.many_gpus [--output benchmarks/reports] [--cluster] [--teacher-rate 1000 4000]

Every GPU labels whole image blocks and commits them; besides the teacher a block needs decoded images, crops, bytes
from a disk that all share, and two transactions of one catalogue, which serves one at a time. What a core and the
catalogue need is measured (`CONSTANTS` says where); how fast a teacher looks is assumed, since no GPU was there.
`--cluster` runs `benchmarks.sleeping_cluster` first (minutes) and takes the catalogue's figures from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import processor

REPORTS = Path(__file__).parent / "reports"
IMAGES, CROPS = 14_197_122, 200
"""ImageNet-21K, and FKD's number of crops."""
IMAGE_BYTES = 93_000
"""1.31 TB over its images."""
GPUS = (8, 32, 128, 512)
TEACHER_RATES = (1_000.0, 4_000.0)
"""Crops per second and GPU, assumed: a large ViT, and a ResNet-50 in bf16 at 224 pixels."""
CORES_PER_GPU = 16
DISK_BYTES_PER_S = 2e9
"""Of the shared disk, assumed: a small parallel file system, or four SSDs behind NFS."""


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What a part of the job costs, measured here."""

    decode_us: float
    """CPU per image of 500 x 375."""
    crop_us: float
    """CPU per crop of 224 beside the teacher: cutting, resizing, batches, top K, encoding."""
    label_bytes: float
    """On disk per crop."""
    block_ms: float
    """For which a block keeps the catalogue from others: CPU of its lease, its commit and the server, one after the
    other."""
    beat_ms: float
    """The same of one heartbeat; where it was not measured, the CPU of a worker's lease."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done with what."""

    gpus: int
    teacher_rate: float
    images: int = IMAGES
    crops: int = CROPS
    images_per_shard: int = 1024
    cores_per_gpu: int = CORES_PER_GPU
    heartbeat_seconds: float = 20.0

    @property
    def crops_per_block(self) -> int:
        """A worker leases and commits so many at a time."""
        return self.images_per_shard * self.crops


def capacities(job: Job, constants: Constants) -> dict[str, float]:
    """Crops per second that each part can do, if the others were infinitely fast."""
    per_crop_us = constants.crop_us + constants.decode_us / job.crops
    beats = job.gpus * constants.beat_ms / 1e3 / job.heartbeat_seconds
    # of every second the catalogue has this left for blocks
    left = max(1.0 - beats, 0.0)
    return {
        "teacher": job.gpus * job.teacher_rate,
        "CPU (decode, crop, encode)": job.gpus * job.cores_per_gpu * 1e6 / per_crop_us,
        "disk": DISK_BYTES_PER_S / (IMAGE_BYTES / job.crops + constants.label_bytes),
        "catalogue": left * job.crops_per_block / (constants.block_ms / 1e3),
    }


def predicted(job: Job, constants: Constants) -> dict[str, Any]:
    """Hours of the job, its bottleneck, how busy the others are, and what a lost machine costs."""
    can = capacities(job, constants)
    bottleneck = min(can, key=lambda name: can[name])
    rate = can[bottleneck]
    block_seconds = job.crops_per_block / (rate / job.gpus)
    # the last blocks end within the time of one, in which half of the GPUs wait on average
    seconds = job.images * job.crops / rate + block_seconds / 2
    return {
        "gpus": job.gpus,
        "teacher_rate": job.teacher_rate,
        "hours": seconds / 3600,
        "bottleneck": bottleneck,
        "busy": {name: rate / most for name, most in can.items()},
        "block_seconds": block_seconds,
        "blocks_per_s": rate / job.crops_per_block,
        "waiting_share": block_seconds / 2 / seconds,
    }


def constants_of(cluster: Mapping[str, Any]) -> Constants:
    """From the reports of the other benchmarks and a run of the sleeping cluster."""
    pixels = json.loads((REPORTS / "loader.json").read_text())["pixels"]
    making = json.loads((REPORTS / "generation.json").read_text())["cpu_ms_per_crop"]
    stored = json.loads((REPORTS / "imagenet_scale.json").read_text())
    one, eight = pixels["m1"]["ours_us"], pixels["m8"]["ours_us"]
    decode = (one - eight) * 8 / 7
    return Constants(
        decode_us=decode,
        # the light teacher's own share taken off, and its images' decoding (100 crops of each)
        crop_us=1e3 * (making["light_generate"] - making["light_teacher"]) - decode / 100,
        label_bytes=stored["bytes_per_crop_float16"],
        block_ms=cluster["lease_cpu_ms"] + cluster["commit_cpu_ms"] + cluster["server_cpu_ms"],
        beat_ms=cluster.get("beat_cpu_ms", cluster["lease_cpu_ms"]),
    )


def as_markdown(record: Mapping[str, Any]) -> str:
    """The report's page."""
    constants, rows = record["constants"], record["predictions"]
    lines = [
        "# Many GPUs, on paper", "",
        (f"`python -m benchmarks.many_gpus`, {record['date']}. ImageNet-21K ({IMAGES:,} images) x {CROPS} crops, blocks of 1,024 images. "
         f"The catalogue's constants were measured on one core of {record['cpu']}, the others on the machine of the reports on [loading](loader.md), "
         f"[generation](generation.md) and [size](imagenet_scale.md); rates of teachers ({', '.join(f'{r:,.0f}' for r in record['rates'])} crops/s per "
         f"GPU), {CORES_PER_GPU} cores per GPU and a disk of {DISK_BYTES_PER_S / 1e9:g} GB/s are assumed."), "",
        "| constant | value |", "|---|---|",
        f"| decode an image | {constants['decode_us'] / 1e3:.2f} ms of CPU |",
        f"| make a crop and keep its label | {constants['crop_us'] / 1e3:.2f} ms of CPU |",
        f"| a crop on disk | {constants['label_bytes']:.1f} B |",
        f"| a block in the catalogue | {constants['block_ms']:.0f} ms of CPU |",
        f"| a heartbeat | {constants['beat_ms']:.0f} ms of CPU |", "",
        "| GPUs | teacher, crops/s | hours | bottleneck | teacher busy | CPU busy | disk busy | catalogue busy | blocks/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        busy = " | ".join(f"{share:.0%}" for share in row["busy"].values())
        lines.append(
            f"| {row['gpus']} | {row['teacher_rate']:,.0f} | {row['hours']:.1f} | {row['bottleneck']} | {busy} | "
            f"{row['blocks_per_s']:.2f} |"
        )
    lines += ["", "## A cluster that sleeps", ""]
    lines += [record["about_cluster"], "", "| run | " + " | ".join(CLUSTER_COLUMNS.values()) + " |"]
    lines.append("|" + "---|" * (len(CLUSTER_COLUMNS) + 1))
    for name, found in record["clusters"].items():
        cells = " | ".join(
            "not measured" if found.get(key) is None else f"{found[key]:,.4g}"
            for key in CLUSTER_COLUMNS
        )
        lines.append(f"| {name} | {cells} |")
    if not any(name.startswith("200 workers") for name in record["clusters"]):
        lines += ["", NOT_REACHED]
    return "\n".join(lines) + "\n"


ALONE = "1 worker, 30 blocks of 0 s"
"""Whose figures are a block's, without those of workers that wait."""
CLUSTER_COLUMNS = {
    "commits_per_s": "commits/s",
    "demanded_per_s": "commits/s that sleeping alone allows",
    "lease_cpu_ms": "lease, ms of CPU",
    "commit_cpu_ms": "commit, ms of CPU",
    "server_cpu_ms": "server, ms of CPU per block",
    "lease_ms": "lease, ms with waiting",
    "retries": "transactions begun again",
    "leases_lost": "leases lost",
    "twice": "committed twice",
    "lost": "lost",
    "load": "load of the machine",
}
ABOUT_CLUSTER = (
    "Workers are threads of two processes (of one, where there is one worker) and do all that `create` does but label: "
    "lease, renew, write, fsync, commit, on one PostgreSQL with fsync on, whose ledger holds 13,300 committed blocks "
    "already. Times with waiting are those of a machine of 2 cores under the load that is named, and say little; CPU says "
    "what a server with cores of its own needs."
)
NOT_REACHED = (
    "**Not reached: 200 workers, and 20.** On this machine, with a load of about 30 from other work (80 with the run), 51 of 200 workers "
    "had a lease after seven minutes and none had committed; that run, one before it and one with 20 workers were ended without a "
    "figure. So neither commits/s nor lost blocks are known at that number, and the catalogue's share above rests on one "
    "worker's CPU times. `python -m benchmarks.many_gpus --cluster` is the run, for a machine that is idle."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict, and print or write the report."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--output", type=Path, help="folder for many_gpus.json and many_gpus.md")
    options.add_argument("--teacher-rate", type=float, nargs="*", default=list(TEACHER_RATES))
    options.add_argument(
        "--cluster", action="store_true", help="measure the catalogue on this machine first"
    )
    options.add_argument("--workers", type=int, default=200)
    options.add_argument("--blocks", type=int, default=200)
    options.add_argument("--before", type=int, default=13_300)
    options.add_argument("--seconds", type=float, default=60.0)
    args = options.parse_args(arguments)
    kept = REPORTS / "many_gpus.json"
    clusters = json.loads(kept.read_text())["clusters"] if kept.exists() else {}
    if args.cluster:
        from benchmarks.sleeping_cluster import Cluster, load, run

        alone = Cluster(workers=1, processes=1, blocks=30, before=args.before, seconds=0)
        many = Cluster(
            workers=args.workers, blocks=args.blocks, before=args.before, seconds=args.seconds
        )
        name = f"{args.workers} workers, {args.blocks} blocks of {args.seconds:g} s"
        for what, cluster in ((ALONE, alone), (name, many)):
            clusters[what] = asdict(run(cluster)) | {"load": load()}
    if ALONE not in clusters:
        options.error("no run of the cluster is kept: give --cluster")
    constants = constants_of(clusters[ALONE])
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": processor(),
        "rates": args.teacher_rate,
        "constants": asdict(constants),
        "predictions": [
            predicted(Job(gpus=gpus, teacher_rate=rate), constants)
            for rate in args.teacher_rate
            for gpus in GPUS
        ],
        "about_cluster": ABOUT_CLUSTER,
        "clusters": clusters,
    }
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "many_gpus.json").write_text(json.dumps(record, indent=1) + "\n")
        (args.output / "many_gpus.md").write_text(as_markdown(record))
    print(as_markdown(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
