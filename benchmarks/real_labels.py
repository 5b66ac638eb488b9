"""What a store holds of a real ImageNet teacher's labels: FerKD Table 1, classes, tail, bytes by part, laws of 8 bits and T.

    python -m benchmarks.real_labels --folder papers/real [--images 61] [--crops 40] [--json]

The teacher is tf_efficientnet_lite0 (`benchmarks/real_teacher.py`), the pictures are objects on photographs
(`benchmarks/papers/real/stamps.py`), one of each class in turn. Bytes are of one shard, encoded and compressed as a store does it;
"at M = 200" divides what an image has once (its class table, its tail table) among 200 crops.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import image_tail, real_tail
from benchmarks.divergence import softmax
from benchmarks.label_model import ModelLabels
from benchmarks.machine import processor
from benchmarks.papers.real import stamps
from benchmarks.real_teacher import weights
from labelstore.analysis.histogram import PAPER_RATIOS, TABLE_1_EDGES
from labelstore.codecs import MarginalSmoothing, top_k
from labelstore.codecs.codec_traits import field_bytes
from labelstore.cropping.crop_plan import CropPlan
from labelstore.images.class_names import wordnet_ids
from labelstore.store.layout import BOX, FLIP

TEACHER = "tf_efficientnet_lite0"
PICTURES = 32
"""Labelled at once."""
REPORT = Path(__file__).parent / "reports" / "real_labels.json"
AT_200 = {
    "MS, K = 5, float16": MarginalSmoothing(k=5, dtype="float16"),
    "MS, K = 5, uint8": MarginalSmoothing(k=5, dtype="uint8"),
    "MS, K = 3 + tail 100, uint8": MarginalSmoothing(k=3, dtype="uint8", tail_classes=100),
}


Labelled = tuple[NDArray[np.float32], NDArray[np.uint16], NDArray[np.bool_], NDArray[np.uint16]]
"""Outputs (n, m, 1000), boxes (n, m, 4), flips (n, m), height and width of the images (n, 2)."""


def labelled(folder: Path, images: range, num_crops: int) -> Labelled:
    """What the teacher says of seeded random crops of these pictures, and the crops."""
    pictures = {
        f"{number:07d}.jpg": stamps.picture(0, "anywhere", "train", number) for number in images
    }
    logits = image_tail.teacher_logits(
        TEACHER, weights(TEACHER, folder / "weights"), num_crops, pictures
    )
    size = np.array([(picture.height, picture.width) for picture in pictures.values()], np.uint16)
    plan = CropPlan(seed=0)
    drawn = [
        plan.crops(key, int(height), int(width), np.arange(num_crops))
        for key, (height, width) in zip(pictures, size, strict=True)
    ]
    boxes, flips = (np.stack([crop[part] for crop in drawn]) for part in (0, 1))
    return logits, boxes, flips, size


def as_model(folder: Path, num_images: int, num_crops: int) -> ModelLabels:
    """The same in the form of the label model's labels; kept in a file of `folder`, since they take minutes."""
    path = folder / f"{TEACHER}-{num_images}x{num_crops}.npz"
    if not path.exists():
        truth = [wordnet_ids("imagenet-1k").index(one.synset) for one in stamps.stamp_classes()]
        parts = []
        for first in range(0, num_images, PICTURES):
            images = range(first, min(first + PICTURES, num_images))
            logits, boxes, flips, size = labelled(folder, images, num_crops)
            kept = top_k(softmax(logits).astype(np.float32), real_tail.K)
            parts.append(
                {
                    "class_ids": kept.class_ids.astype(np.uint16),
                    "probs": kept.probs,
                    "tail": kept.tail,
                    "box": boxes,
                    "flip": flips,
                    "size": size,
                    "ground_truth": np.array([truth[number % len(truth)] for number in images]),
                }
            )
        np.savez(path, **{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
    with np.load(path) as found:
        return ModelLabels(**found)


def run(folder: Path, num_images: int, num_crops: int) -> dict[str, Any]:
    """All facts, as JSON values."""
    logits, boxes, flips, _ = labelled(folder, range(num_images), num_crops)
    labels = top_k(softmax(logits).astype(np.float32), real_tail.K)
    crops = num_images * num_crops
    return {
        "teacher": TEACHER,
        "images": num_images,
        "crops_per_image": num_crops,
        "labels": real_tail.describe(labels, logits[:, : real_tail.COMPARED_CROPS]),
        "boxes_bytes_per_crop": field_bytes(BOX, boxes) / crops,
        "flips_bytes_per_crop": field_bytes(FLIP, flips.astype("u1")) / crops,
        "bytes_per_crop_at_200": {
            name: image_tail.bytes_per_crop(
                codec,
                top_k(softmax(logits).astype(np.float32), codec.kept(real_tail.CLASSES)),
            )
            for name, codec in AT_200.items()
        },
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "versions": {name: version(name) for name in ("labelstore", "numpy", "timm", "torch")},
    }


def markdown(found: dict[str, Any]) -> str:
    """The report's page."""
    labels = found["labels"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        "# A real teacher's labels",
        "",
        f"`python -m benchmarks.real_labels --images {found['images']} --crops {found['crops_per_image']}`, {found['date']},",
        f"{found['processor']}; {versions}.",
        "",
        f"{found['teacher']}, an ImageNet-1K teacher, on {found['images']} pictures x {found['crops_per_image']} random crops: photographed objects on",
        "photographed places (`benchmarks/papers/real/stamps.py`). C = 1000, K = 5, one shard.",
        "",
        "| largest probability | this teacher | FerKD Table 1 |",
        "|---|---|---|",
    ]
    bins = zip(pairwise(TABLE_1_EDGES), labels["bins"], PAPER_RATIOS, strict=True)
    for (low, high), share, paper in bins:
        lines.append(f"| {low:g} to {high:g} | {share:.2%} | {paper:.2%} |")
    lines += [
        "",
        "| | |",
        "|---|---|",
        f"| mean largest probability | {labels['mean_max_probability']:.3f} |",
        f"| mean tail beyond K = 5 | {labels['mean_tail']:.3f} |",
        f"| distinct classes per image | {labels['distinct_ids_per_image']:.0f} |",
        f"| uint8: KL to float32, mean; worst | {labels['uint8_kl_mean']:.1e}; {labels['uint8_kl_worst']:.1e} |",
        f"| uint8: error of the largest probability, worst | {labels['uint8_max_probability_error']:.4f} |",
        f"| uint8: Table 1's bins, largest difference | {labels['uint8_bins_error']:.2%} |",
        "",
        "KL in nats from softmax(logits / T) to the stored label brought to T:",
        "",
        "| T | T = 1 label reused | float32 | float16 | uint8 |",
        "|---|---|---|---|---|",
    ]
    for temperature, row in labels["kl"].items():
        cells = (row[name] for name in ("reused", *real_tail.DTYPES))
        lines.append(f"| {temperature} | " + " | ".join(f"{value:.3g}" for value in cells) + " |")
    parts = [
        name for name in labels["bytes_per_crop"]["float32"] if name not in ("total", "class_ids")
    ]
    parts = sorted({*parts, *(set(labels["bytes_per_crop"]["uint8"]) - {"total", "class_ids"})})
    lines += [
        "",
        f"Bytes per crop, {found['crops_per_image']} crops per image in a shard:",
        "",
        "| part | " + " | ".join(real_tail.DTYPES) + " |",
        "|---" * 4 + "|",
    ]
    for part in (*parts, "total"):
        sizes = (labels["bytes_per_crop"][dtype].get(part) for dtype in real_tail.DTYPES)
        lines.append(
            f"| {part} | "
            + " | ".join("-" if size is None else f"{size:.2f}" for size in sizes)
            + " |"
        )
    beside = found["boxes_bytes_per_crop"] + found["flips_bytes_per_crop"]
    lines += [
        "",
        f"Boxes take {found['boxes_bytes_per_crop']:.2f} and flips {found['flips_bytes_per_crop']:.2f} beside these, nothing where crops are seeded. At M = 200:",
        "",
        "| labels | alone, and with seeded crops | with boxes and flips |",
        "|---|---|---|",
    ]
    for name, size in found["bytes_per_crop_at_200"].items():
        lines.append(f"| {name} | {size:.2f} | {size + beside:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("papers/real"))
    parser.add_argument("--images", type=int, default=61)
    parser.add_argument("--crops", type=int, default=40)
    parser.add_argument("--output", type=Path, default=REPORT)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = run(arguments.folder, arguments.images, arguments.crops)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(markdown(found))
    print(json.dumps(found) if arguments.json else markdown(found))


if __name__ == "__main__":
    main()
