"""What a byte of a label is worth, on real teachers: K classes, the image's tail beside them, as few classes as needed.

    python -m benchmarks.image_tail --weights tf_efficientnet_lite0.safetensors [--crops 64] [--steps 300] [--output FILE] [--json]

The teacher is a network of timm with ImageNet's 1,000 classes (`--architecture`); it says what it sees on seeded random crops of the
photographs that scikit-image and scikit-learn ship. With `--steps` the two networks of `benchmarks.real_tail` are trained on the
spot and asked too. Bytes are of one shard, encoded and compressed as a store does it, labels alone; what an image has once
(class table, tail table) is divided among the crops of a shard, 200. KL in nats is from softmax(logits / T) to the stored
label, re-tempered.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.divergence import kl, softmax
from benchmarks.machine import processor
from benchmarks.real_tail import TASKS, random_crops, train
from labelstore.codecs import MarginalSmoothing, TopK, choose_class_ids, top_k
from labelstore.codecs.codec_traits import field_bytes
from labelstore.cropping.crop_plan import CropPlan
from labelstore.cropping.replay import replay_many
from labelstore.testing.digit_pictures import PHOTOGRAPHS, photographs

CLASSES = 1000
CROPS_PER_IMAGE = 200
"""Among which an image's tables are divided: M of the papers, in one shard."""
TEMPERATURES = (1.0, 4.0, 20.0)
CODECS = {
    "MS K=5": MarginalSmoothing(k=5, dtype="uint8"),
    "MS K=20": MarginalSmoothing(k=20, dtype="uint8"),
    "K=2 + tail 100": MarginalSmoothing(k=2, tail_classes=100, dtype="uint8"),
    "K=3 + tail 100": MarginalSmoothing(k=3, tail_classes=100, dtype="uint8"),
    "K=3 + tail 100, float16": MarginalSmoothing(k=3, tail_classes=100),
    "K=5 + tail 100": MarginalSmoothing(k=5, tail_classes=100, dtype="uint8"),
    "K=10 + tail of all": MarginalSmoothing(k=10, tail_classes=CLASSES, dtype="uint8"),
    "MS K=100": MarginalSmoothing(k=100, dtype="uint8"),
}
FIXED = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30, 50)
"""K of the frontier, and what "as few as needed" chooses from."""
MOST_KL = (0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
TOP_P = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
WINS = 0.9
"""A codec of variable K is worth its code where it takes a tenth fewer bytes at equal KL."""


def teacher_logits(
    architecture: str,
    weights: Path,
    num_crops: int,
    pictures: Mapping[str, Image.Image] | None = None,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """(pictures, crops, 1000) outputs before softmax, on seeded random crops of pictures by key: RGB, or the photographs."""
    import timm

    model = timm.create_model(architecture, checkpoint_path=str(weights)).eval()
    model = model.to(memory_format=torch.channels_last)
    config = timm.data.resolve_data_config(model=model)
    size = config["input_size"][-1]
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) * 255 for name in ("mean", "std"))
    found = []
    shown = pictures or dict(zip(PHOTOGRAPHS, photographs(), strict=True))
    for name, picture in shown.items():
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        boxes, flips = CropPlan(seed=0).crops(name, *pixels.shape[1:], np.arange(num_crops))
        crops = torch.empty(
            num_crops, 3, size, size, dtype=torch.uint8, memory_format=torch.channels_last
        )
        replay_many(pixels, boxes, flips, size, config["interpolation"], crops)
        with torch.inference_mode():
            parts = [model((part.float() - mean) / std) for part in crops.split(batch_size)]
        found.append(torch.cat(parts).numpy())
    return np.stack(found)


def trained_logits(name: str, steps: int, num_images: int, num_crops: int) -> NDArray[np.float32]:
    """(images, crops, 1000) outputs of a network of `benchmarks.real_tail`, of pictures it was not trained on."""
    rng = np.random.default_rng(7)
    task = TASKS[name]()
    model = train(task, steps, rng)
    pictures, _ = task.draw(rng, num_images, True)
    with torch.inference_mode():
        crops = [
            model(random_crops(pictures, rng, task.least_area)).numpy() for _ in range(num_crops)
        ]
    return np.stack(crops, axis=1)


def bytes_per_crop(codec: MarginalSmoothing, labels: TopK, unused: Any = None) -> float:
    """Of one shard; `unused` (n, m, K) marks entries that a label of variable K does not need."""
    codec = choose_class_ids(codec, labels, CLASSES)
    arrays = codec.encode(labels, CLASSES)
    images, crops = labels.tail.shape
    total = 0.0
    for field in codec.fields(CLASSES):
        array = arrays[field.name]
        if unused is not None and array.shape == unused.shape:
            array = np.where(unused, np.asarray(field.fill, array.dtype), array)
        shared = CROPS_PER_IMAGE if field.per == "image" else crops
        total += field_bytes(field, array) / images / shared
    return total


def measure(logits: NDArray[np.float32]) -> dict[str, Any]:
    """Bytes and KL of every codec, and both frontiers, on one teacher's outputs (n, m, 1000)."""
    true = {temperature: softmax(logits, temperature) for temperature in TEMPERATURES}
    probs = true[1.0].astype(np.float32)
    found = {}
    for name, codec in CODECS.items():
        labels = top_k(probs, codec.kept(CLASSES))
        arrays = codec.encode(labels, CLASSES)
        found[name] = {
            "bytes_per_crop": bytes_per_crop(codec, labels),
            **{
                f"kl_{temperature:g}": float(
                    kl(truth, codec.recover(arrays, CLASSES, temperature)).mean()
                )
                for temperature, truth in true.items()
            },
        }
    half = probs.shape[1] // 2
    return {
        "images": probs.shape[0],
        "crops": probs.shape[1],
        "mean_max_probability": float(probs.max(-1).mean()),
        "codecs": found,
        "kl_1_of_crops_not_in_the_table": _held_out(probs, half),
        "tails": tails_alike(probs),
        "frontier": frontier(probs),
    }


def tails_alike(probs: NDArray[np.float32], k: int = 3) -> dict[str, float]:
    """What the tails beyond K classes of labels (n, m, C) add to the labels' KL, in nats per crop.

    `even`: spread evenly; `image`: spread as the mean tail of the image, of all classes and unrounded, which is the least
    that any table of the image can reach; `mass`: of the tails.
    """
    tails = probs.astype(np.float64)
    np.put_along_axis(tails, np.argpartition(-tails, k - 1, axis=-1)[..., :k], 0, -1)
    inside = tails > 0
    mass = tails.sum(-1, keepdims=True)
    # the mean of the crops that have the class in their tails, as the codec's tables are made
    mean = tails.sum(1, keepdims=True) / np.maximum(inside.sum(1, keepdims=True), 1)
    spread = np.where(inside, mean, 0)
    spread *= mass / spread.sum(-1, keepdims=True)
    even = mass / inside.sum(-1, keepdims=True)

    def cost(other: NDArray[np.float64]) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            lost = np.where(inside, tails * np.log(tails / other), 0)
        return float(lost.sum(-1).mean())

    return {"even": cost(even), "image": cost(spread), "mass": float(mass.mean())}


def _held_out(probs: NDArray[np.float32], half: int) -> float:
    """KL at T = 1 of K=3 + tail 100 where the table is of the other half of an image's crops."""
    codec = CODECS["K=3 + tail 100"]
    arrays = codec.encode(top_k(probs[:, half:], codec.kept(CLASSES)), CLASSES)
    others = codec.encode(top_k(probs[:, :half], codec.kept(CLASSES)), CLASSES)
    tables = {name: others[name] for name in ("tail_gap", "tail_share")}
    recovered = codec.recover(arrays | tables, CLASSES)
    return float(kl(probs[:, half:].astype(np.float64), recovered).mean())


def frontier(probs: NDArray[np.float32]) -> dict[str, list[dict[str, float]]]:
    """Bytes against KL at T = 1: K fixed, the image's tail, and per crop the fewest classes for a KL or a mass.

    Of labels with a variable K the arrays are as wide as the longest, the rest of each filled with the sentinel, which
    compresses to almost nothing; where they have an image's tail, each K has its own table and one is counted.
    """
    truth = probs.astype(np.float64)
    points: dict[str, list[dict[str, float]]] = {}
    for name, entries in (("", 0), (" + tail 100", 100)):
        codecs = [MarginalSmoothing(k=k, tail_classes=entries, dtype="uint8") for k in FIXED]
        labels = [top_k(probs, codec.kept(CLASSES)) for codec in codecs]
        lost = np.stack(
            [
                kl(truth, codec.recover(codec.encode(kept, CLASSES), CLASSES))
                for codec, kept in zip(codecs, labels, strict=True)
            ]
        )
        points[f"K{name}"] = [
            _point(k, bytes_per_crop(codec, kept), each)
            for k, codec, kept, each in zip(FIXED, codecs, labels, lost, strict=True)
        ]
        mass = np.stack(
            [kept.probs[..., :k].sum(-1) for k, kept in zip(FIXED, labels, strict=True)]
        )
        wide, widest = labels[-1], codecs[-1]

        def variable(
            limit: float, enough: Any, lost: Any, wide: TopK, widest: Any
        ) -> dict[str, float]:
            nth = np.where(enough.any(0), enough.argmax(0), len(FIXED) - 1)
            unused = np.arange(FIXED[-1]) >= np.asarray(FIXED)[nth][..., None]
            own = np.take_along_axis(lost, nth[None], 0)[0]
            return _point(limit, bytes_per_crop(widest, wide, unused), own)

        points[f"fewest for a KL{name}"] = [
            variable(limit, lost <= limit, lost, wide, widest) for limit in MOST_KL
        ]
        points[f"fewest for a mass{name}"] = [
            variable(limit, mass >= limit, lost, wide, widest) for limit in TOP_P
        ]
    return points


def _point(limit: float, size: float, lost: NDArray[np.float64]) -> dict[str, float]:
    return {"limit": limit, "bytes_per_crop": size, "kl": float(lost.mean())}


def share_of_bytes(
    frontier: dict[str, list[dict[str, float]]], name: str, fixed: str
) -> list[float]:
    """Bytes of one way as a share of another's at equal KL, at each of the other's points that the first reaches."""
    own = sorted((point["kl"], point["bytes_per_crop"]) for point in frontier[name])
    levels, sizes = np.array(own).T
    shares = []
    for point in frontier[fixed]:
        if levels[0] <= point["kl"] <= levels[-1]:
            size = np.exp(np.interp(point["kl"], levels, np.log(sizes)))
            shares.append(float(size / point["bytes_per_crop"]))
    return shares


def run(architecture: str, weights: Path, num_crops: int, steps: int) -> dict[str, Any]:
    logits = {architecture: teacher_logits(architecture, weights, num_crops)}
    if steps:
        images = len(PHOTOGRAPHS)
        logits |= {name: trained_logits(name, steps, images, num_crops) for name in TASKS}
    teachers = {name: measure(outputs) for name, outputs in logits.items()}
    shares = {
        name: {
            f"{variable} / {fixed}": share_of_bytes(teacher["frontier"], variable, fixed)
            for variable, fixed in PAIRS
        }
        for name, teacher in teachers.items()
    }
    return {
        "architecture": architecture,
        "crops": num_crops,
        "steps": steps,
        "teachers": teachers,
        "share_of_bytes_at_equal_kl": shares,
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "versions": {name: version(name) for name in ("labelstore", "numpy", "torch", "timm")},
    }


PAIRS = [
    (f"fewest for a {what}{tail}", f"K{tail}")
    for tail in ("", " + tail 100")
    for what in ("KL", "mass")
]


def markdown(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    others = (
        f"; `numbers` and `places` are trained here on real\npictures ({result['steps']} steps, see `benchmarks.real_tail`) "
        "and asked about pictures that they were not trained on"
        if result["steps"]
        else ""
    )
    parts = [
        f"""# What a byte of a label is worth

`python -m benchmarks.image_tail --weights WEIGHTS --architecture {result["architecture"]} --crops {result["crops"]} --steps {result["steps"]}`, {result["date"]},
{result["processor"]}; {versions}.

{result["architecture"]} is an ImageNet-1K teacher on the photographs that scikit-image and scikit-learn ship{others}. Labels alone, 8 bits where nothing else is said, one
shard; an image's tables are divided among {CROPS_PER_IMAGE} crops. KL in nats from softmax(logits / T).
"""
    ]
    for name, teacher in result["teachers"].items():
        base = teacher["codecs"]["MS K=5"]["kl_1"]
        rows = "\n".join(
            f"| {codec} | {row['bytes_per_crop']:.2f} | {row['kl_1']:.3f} | {row['kl_1'] / base:.2f} | {row['kl_4']:.4f} | {row['kl_20']:.5f} |"
            for codec, row in teacher["codecs"].items()
        )
        parts.append(f"""## {name}

{teacher["images"]} images x {teacher["crops"]} crops, mean largest probability {teacher["mean_max_probability"]:.2f}.

| labels | B per crop | KL, T = 1 | of MS K=5's | T = 4 | T = 20 |
|---|---|---|---|---|---|
{rows}

K=3 + tail 100 with the table of the other half of each image's crops: {teacher["kl_1_of_crops_not_in_the_table"]:.3f} at T = 1.
Tails beyond K=3, {teacher["tails"]["mass"]:.3f} of the mass, cost {teacher["tails"]["even"]:.3f} nats spread evenly and {teacher["tails"]["image"]:.3f} ({teacher["tails"]["image"] / base:.2f} of MS K=5's KL) spread as the image's mean tail:
the least that any table of the image can reach.
""")
    parts.append(_variable(result))
    return "\n".join(parts)


def _variable(result: dict[str, Any]) -> str:
    shares = result["share_of_bytes_at_equal_kl"]
    head = "| | " + " | ".join(shares) + " |\n|---|" + "---|" * len(shares)
    rows = []
    for variable, fixed in PAIRS:
        cells = []
        for name in shares:
            found = shares[name][f"{variable} / {fixed}"]
            cells.append(f"{min(found):.2f} to {max(found):.2f}" if found else "-")
        rows.append(f"| {variable}, of fixed {fixed} | " + " | ".join(cells) + " |")
    every = [x for own in shares.values() for found in own.values() for x in found]
    wins = sum(x <= WINS for x in every)
    table = "\n".join([head, *rows])
    return f"""## As few classes as a label needs

Per crop the fewest classes, of K = {", ".join(map(str, FIXED))}, that leave at most a given KL, or that have a given mass (top-P). Bytes as a share of
those of a fixed K at equal KL, T = 1 (below 1: fewer bytes):

{table}

{wins} of {len(every)} points take a tenth fewer bytes than a fixed K.
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--weights", type=Path, required=True, help="of the network, .safetensors")
    options.add_argument("--architecture", default="tf_efficientnet_lite0", help="timm's name")
    options.add_argument("--crops", type=int, default=64)
    options.add_argument("--steps", type=int, default=0, help="train the two other teachers")
    options.add_argument(
        "--output", type=Path, help="write the result there (.json) and beside it (.md)"
    )
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    if args.crops < 2 or args.steps < 0:
        options.error("--crops: at least 2; --steps: 0 or more")
    result = run(args.architecture, args.weights, args.crops, args.steps)
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(markdown(result))
    print(json.dumps(result, separators=(",", ":")) if args.json else markdown(result))


if __name__ == "__main__":
    main()
