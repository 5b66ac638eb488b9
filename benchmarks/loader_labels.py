"""The label side of loaders: labels, boxes and flips of a pass as batches of 1,024 crops, random image order, no pixels.

Ours is what `trainer.loader` does per batch: shuffle the images, gather their records from the pass that is laid out in
mapped files, take class ids, probabilities, boxes, flips and regions out of them. Records of a smaller store are repeated
to ImageNet's number of images, since what fits into a cache is gathered faster. FKD's is a reader of its own layout: one
`torch.load` per image of a file with all M crops, of which m random ones are kept. Laying a pass out is timed apart.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import fkd_loader
from benchmarks.generation import Spent, spent
from benchmarks.loader_data import LoaderData
from benchmarks.loader_pixels import ROUNDS_AT_MOST, take_turns
from labelstore.exchange.readers.fkd import label_file
from trainer.loader import PassLabels, StoredPasses
from trainer.loader.planes import labels_of
from trainer.sampler import U64, PassSchedule, image_order, splitmix64

BATCH = 1024
CROPS_PER_IMAGE = 4


def measure(
    data: LoaderData,
    num_files: int,
    *,
    num_images: int,
    rounds: int,
    stack: ExitStack,
    scratch: Path,
) -> dict[str, Any]:
    """Crops per second of CPU time of both, and what laying out a pass adds to ours."""
    schedule = PassSchedule.of(passes=ROUNDS_AT_MOST, crops_per_image=CROPS_PER_IMAGE)
    source = stack.enter_context(StoredPasses(data.labels, schedule=schedule, scratch=scratch))
    per_column = max(1, data.labels.plan.crops_per_chunk // CROPS_PER_IMAGE)
    crops = len(data.keys) * CROPS_PER_IMAGE
    # passes of one chunk column are laid out together; the first of each column pays for all
    laid_out = [
        spent(lambda p=p: source.pass_labels(p), crops)  # type: ignore[misc]
        for p in range(2 * per_column)
    ]
    columns = [laid_out[:per_column], laid_out[per_column:]]
    pass_us = min(1000 * sum(one.cpu_ms for one in column) / per_column for column in columns)
    labels, streams = repeated(source, num_images, scratch)
    sides = {
        "ours": lambda number: gathered(labels, streams, number),
        "fkd": lambda number: fkd_read(data, num_files, number),
    }
    rounds_of = take_turns(sides, rounds, crops)
    ours, fkd = rounds_of.of("ours"), rounds_of.of("fkd")
    return {
        "crops_per_s": 1e6 / ours,
        "ratio_vs_fkd": rounds_of.ratio("fkd", "ours"),
        "ns_per_crop": 1000 * ours,
        "fkd_us_per_crop": fkd,
        "laying_out_ns_per_crop": 1000 * pass_us,
        "ratio_vs_fkd_with_laying_out": fkd / (ours + pass_us),
        "range_crops_per_s": [1e6 / max(rounds_of.us["ours"]), 1e6 / min(rounds_of.us["ours"])],
        "ratios": [
            round(fkd / ours) for ours, fkd in zip(*(rounds_of.us[n] for n in sides), strict=True)
        ],
        "images": num_images,
        "images_in_store": len(data.keys),
        "num_crops": data.labels.num_crops,
        "fkd_files": num_files,
        "crops_measured": rounds * (num_images + num_files) * CROPS_PER_IMAGE,
    }


def repeated(source: StoredPasses, num_images: int, scratch: Path) -> tuple[PassLabels, U64]:
    """One pass of a real source, its images repeated to `num_images`, mapped from files; and their streams."""
    found, planes = source.pass_labels(0), []
    for nth, plane in enumerate(found.planes):
        path = scratch / f"repeated-{nth}.npy"
        np.save(path, np.resize(plane, num_images))
        planes.append(np.load(path, mmap_mode="r"))
    labels = PassLabels(
        images=np.arange(num_images), num_classes=found.num_classes, planes=tuple(planes)
    )
    return labels, splitmix64(np.arange(num_images, dtype=np.uint64))


def gathered(labels: PassLabels, streams: U64, number: int) -> Spent:
    """One pass in batches."""
    each = BATCH // CROPS_PER_IMAGE

    def work() -> None:
        order = image_order(0, number, streams)
        for first in range(0, len(order), each):
            records = labels.take(order[first : first + each]).reshape(-1)
            of_batch = labels_of(records, labels.num_classes)
            for name in ("box", "flip", "region", "crop"):
                np.ascontiguousarray(records[name])
            assert len(of_batch.class_ids) == len(records)

    return spent(work, len(labels.images) * CROPS_PER_IMAGE)


def fkd_read(data: LoaderData, num_files: int, number: int) -> Spent:
    """The same of FKD's files, as many as there are."""
    rng = np.random.default_rng(number)
    m, each = CROPS_PER_IMAGE, BATCH // CROPS_PER_IMAGE

    def work() -> None:
        order = rng.permutation(num_files)
        for first in range(0, num_files, each):
            found: list[tuple[Any, ...]] = []
            for image in order[first : first + each].tolist():
                boxes, flips, labels = fkd_loader.read_file(data.fkd / label_file(data.keys[image]))
                chosen = rng.permutation(len(flips))[:m]
                found.append((boxes[chosen], flips[chosen], labels[chosen]))
            boxes, flips, labels = (np.concatenate(part) for part in zip(*found, strict=True))
            class_ids = labels[:, 0].astype(np.int64)
            assert len(class_ids) == len(boxes) == len(flips)

    return spent(work, num_files * m)
