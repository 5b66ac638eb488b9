"""A whole store in 8 bits, with seeded crops, K = 3 and the image's tail: everything on disk, per crop.

    python -m benchmarks.tail_store [--images 256,768] [--crops 200] [--report]

The labels are the label model's (reference/2), written by the real path: catalogue, leases, encode, fsync, ledger. Two stores of
different size tell what an image costs (arrays, shard indexes, catalogue) and what a store costs once (empty tables, metadata).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import labelstore
from benchmarks import label_model
from benchmarks.machine import processor
from benchmarks.scale_store import NUM_CLASSES, SEEDED, Target, image_folder, top_k_of, write_labels
from labelstore import PlanOptions
from labelstore.analysis.disk import storage
from labelstore.codecs import MarginalSmoothing, choose_class_ids
from labelstore.commit.lease_keeper import LeaseKeeper
from labelstore.testing.filled_store import add_label_set

CODEC = MarginalSmoothing(k=3, tail_classes=100, dtype="uint8")
IMAGES_PER_SHARD = 256
IMAGENET = 1_281_167
TARGET = 6.0
"""Bytes per crop at M = 200."""
REPORT = Path(__file__).parent / "reports" / "tail_store.json"


def measure(folder: Path, num_images: int, num_crops: int) -> dict[str, int]:
    """Bytes of a store of N images by kind."""
    wide = CODEC.kept(NUM_CLASSES)
    first = label_model.labels(0, IMAGES_PER_SHARD, num_crops, k=wide, num_classes=NUM_CLASSES)
    codec = choose_class_ids(CODEC, top_k_of(first), NUM_CLASSES)
    store = labelstore.create(
        folder,
        images=image_folder(num_images, IMAGES_PER_SHARD),
        plan=PlanOptions(
            num_crops=num_crops,
            stored_crops=False,
            images_per_shard=IMAGES_PER_SHARD,
            crops_per_shard=num_crops,
        ),
    )
    with store:
        add_label_set(store, codec, NUM_CLASSES, name="uint8")
        layout = store.group_specs("labels/uint8")[1]
        target = Target(store=SEEDED, label_set="uint8", dtype="uint8", with_boxes=False)
        keeper = LeaseKeeper(
            store.catalogue, "labels/uint8", layout.num_blocks, layout.num_crop_shards
        )
        while (lease := keeper.acquire()) is not None:
            rows = layout.rows(lease.block)
            labels = label_model.labels(
                rows.start, len(rows), num_crops, k=wide, num_classes=NUM_CLASSES
            )
            write_labels(store, target, lease, layout, labels, with_boxes=False)
            keeper.forget(lease.block)
        keeper.close()
        store.refresh()
        found = storage(store)
    return {
        "images": num_images,
        "arrays": found.arrays_bytes,
        "metadata": found.metadata_bytes,
        "catalogue": found.catalogue_bytes,
        "folder": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def run(images: tuple[int, int], num_crops: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        small, large = (measure(Path(folder) / f"{n}.labels", n, num_crops) for n in images)
    more = (large["images"] - small["images"]) * num_crops
    arrays = large["arrays"] / large["images"] / num_crops
    catalogue = (large["catalogue"] - small["catalogue"]) / more
    once = large["metadata"] + large["catalogue"] - catalogue * large["images"] * num_crops
    return {
        "label_model": label_model.NAME,
        "crops": num_crops,
        "stores": [small, large],
        "arrays_per_crop": arrays,
        "catalogue_per_crop": catalogue,
        "once": once,
        "per_crop": arrays + catalogue,
        "imagenet_bytes": (arrays + catalogue) * IMAGENET * num_crops + once,
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
    }


def markdown(result: dict[str, Any]) -> str:
    stores = "\n".join(
        f"| {row['images']} | {row['arrays']:,} | {row['metadata']:,} | {row['catalogue']:,} | {row['folder']:,} |"
        for row in result["stores"]
    )
    return f"""# A whole store with the image's tail

`python -m benchmarks.tail_store --images {",".join(str(row["images"]) for row in result["stores"])} --crops {result["crops"]} --report`, {result["date"]}, {result["processor"]}.

Label model {result["label_model"]}, C = 1000; K = 3, 8 bits, a tail of 100 classes, seeded crops, {IMAGES_PER_SHARD} images x {result["crops"]} crops in a shard. Bytes:

| images | arrays | metadata | catalogue | all files |
|---|---|---|---|---|
{stores}

Per crop {result["arrays_per_crop"]:.2f} B of arrays and {result["catalogue_per_crop"]:.2f} B of catalogue, {result["per_crop"]:.2f} B together (target {TARGET:g} at M = 200); {result["once"] / 1000:,.0f} kB once for a
store. At {IMAGENET:,} images x {result["crops"]} crops that is {result["imagenet_bytes"] / 1e9:.2f} GB ({result["imagenet_bytes"] / 2**30:.2f} GiB).
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", default="256,768", help="sizes of the two stores")
    options.add_argument("--crops", type=int, default=200)
    options.add_argument("--report", action="store_true", help="write benchmarks/reports/")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    small, _, large = args.images.partition(",")
    if not (small.isdecimal() and large.isdecimal() and 0 < int(small) < int(large)):
        options.error("--images: two numbers, the smaller first")
    result = run((int(small), int(large)), args.crops)
    if args.report:
        REPORT.write_text(json.dumps(result, indent=1) + "\n")
        REPORT.with_suffix(".md").write_text(markdown(result))
    print(json.dumps(result, separators=(",", ":")) if args.json else markdown(result))


if __name__ == "__main__":
    main()
