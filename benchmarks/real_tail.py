"""Sizes and re-tempering on labels of real networks with 1,000 outputs, beside the label model's.

    python -m benchmarks.real_tail [--images 512] [--crops 100] [--steps 1500] [--report] [--json]

Two teachers are trained on the spot, on pictures that libraries ship: `numbers` reads three handwritten digits side by
side (scikit-learn's, 1,000 classes); `places` says which of 1,000 places of 17 photographs a crop is from. Labels are
their softmax over RandomResizedCrops of pictures that they were not trained on. Bytes are of one shard, encoded and compressed as
a store does it; divergences are from the true tempered label, softmax(logits / T).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import label_model
from benchmarks.divergence import kl, softmax
from benchmarks.machine import processor
from labelstore.analysis.histogram import TABLE_1_EDGES
from labelstore.codecs import MarginalSmoothing, TopK, choose_class_ids, top_k
from labelstore.codecs.codec_traits import field_bytes
from labelstore.testing.digit_pictures import photographs

CLASSES, K = 1000, 5
SIDE = 32
"""Pixels of a crop as the teacher sees it."""
TEMPERATURES = (1.0, 2.0, 4.0, 20.0)
DTYPES = ("float32", "float16", "uint8")
COMPARED_CROPS = 10
"""Crops of each image whose divergence is computed."""
REPORT = Path(__file__).parent / "reports" / "real_tail.json"


@dataclass(frozen=True)
class Task:
    """Pictures with 1,000 classes: `draw(generator, n, held_out)` gives float32 (n, 1, H, W) in [0, 1] and classes (n,)."""

    name: str
    draw: Callable[[np.random.Generator, int, bool], tuple[Tensor, Tensor]]
    least_area: float
    """Smallest share of a picture that a crop covers."""


def numbers() -> Task:
    """Three handwritten digits side by side: 000 to 999."""
    from sklearn.datasets import load_digits

    found = load_digits()
    digits = (found.images / 16).astype(np.float32)
    cut = 1200  # as the demo: the others are nobody's training pictures
    pools = {
        held_out: [
            np.flatnonzero((found.target == c) & _part(len(digits), cut, held_out))
            for c in range(10)
        ]
        for held_out in (False, True)
    }

    def draw(rng: np.random.Generator, n: int, held_out: bool) -> tuple[Tensor, Tensor]:
        classes = rng.integers(CLASSES, size=n)
        pictures = np.zeros((n, 1, 16, 32), np.float32)
        for place, scale in enumerate((100, 10, 1)):
            wanted = classes // scale % 10
            chosen = [rng.choice(pools[held_out][c]) for c in wanted]
            pictures[:, 0, 4:12, 4 + 8 * place : 12 + 8 * place] = digits[chosen]
        return torch.from_numpy(pictures), torch.from_numpy(classes)

    return Task("numbers", draw, 0.3)


def _part(total: int, cut: int, held_out: bool) -> NDArray[np.bool_]:
    return (np.arange(total) >= cut) == held_out


def places() -> Task:
    """Windows of photographs around 1,000 points on a grid; held out are other offsets, never drawn in training."""
    grey = [np.asarray(picture.convert("L"), np.float32) / 255 for picture in photographs()]
    window, reach = 64, 24
    spots = []
    for number, picture in enumerate(grey):
        for top in range(reach, picture.shape[0] - window - reach, 40):
            spots += [
                (number, top, left) for left in range(reach, picture.shape[1] - window - reach, 40)
            ]
    chosen = np.random.default_rng(0).permutation(len(spots))[:CLASSES]
    if len(chosen) < CLASSES:
        raise ValueError(f"{len(chosen)} places in these photographs, {CLASSES} are due")

    def draw(rng: np.random.Generator, n: int, held_out: bool) -> tuple[Tensor, Tensor]:
        classes = rng.integers(CLASSES, size=n)
        pictures = np.empty((n, 1, window, window), np.float32)
        shifts = rng.integers(-reach // 2, reach // 2, (n, 2)) * 2 + int(
            held_out
        )  # odd ones are held out
        for at, (c, (down, right)) in enumerate(zip(classes, shifts, strict=True)):
            number, top, left = spots[chosen[c]]
            pictures[at, 0] = grey[number][
                top + down : top + down + window, left + right : left + right + window
            ]
        return torch.from_numpy(pictures), torch.from_numpy(classes)

    return Task("places", draw, 0.08)


TASKS: dict[str, Callable[[], Task]] = {"numbers": numbers, "places": places}


def network() -> nn.Module:
    """Four convolutions and a linear layer: some seconds of training, a real softmax."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (32, 64, 128, 128):
        layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (SIDE // 16) ** 2, CLASSES))


def random_crops(pictures: Tensor, rng: np.random.Generator, least_area: float) -> Tensor:
    """One RandomResizedCrop (ratio 3/4 to 4/3) of each picture: (n, 1, SIDE, SIDE)."""
    n = len(pictures)
    area = rng.uniform(least_area, 1, n)
    ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), n))
    height, width = np.minimum(np.sqrt(area / ratio), 1), np.minimum(np.sqrt(area * ratio), 1)
    top, left = rng.random(n) * (1 - height), rng.random(n) * (1 - width)
    theta = np.zeros((n, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 0, 2] = width, 2 * left + width - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    grid = functional.affine_grid(torch.from_numpy(theta), (n, 1, SIDE, SIDE), align_corners=False)
    return functional.grid_sample(pictures, grid, align_corners=False)


def train(task: Task, steps: int, rng: np.random.Generator) -> nn.Module:
    torch.manual_seed(0)
    model = network()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    for _ in range(steps):
        pictures, classes = task.draw(rng, 256, False)
        loss = functional.cross_entropy(
            model(random_crops(pictures, rng, task.least_area)), classes
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def teacher_labels(
    task: Task, model: nn.Module, num_images: int, num_crops: int, rng: np.random.Generator
) -> tuple[TopK, NDArray[np.float32], float]:
    """Top-K (n, m, K) of softmax, logits of some crops (n, COMPARED_CROPS, C), and top-1 on crops."""
    pictures, classes = task.draw(rng, num_images, True)
    kept, logits, right = [], [], 0
    for crop in range(num_crops):
        z = model(random_crops(pictures, rng, task.least_area))
        kept.append(top_k(z.softmax(-1).numpy()[:, None], K))
        right += int((z.argmax(-1) == classes).sum())
        if crop < COMPARED_CROPS:
            logits.append(z.numpy()[:, None])
    labels = TopK(
        class_ids=np.concatenate([part.class_ids for part in kept], 1),
        probs=np.concatenate([part.probs for part in kept], 1),
        tail=np.concatenate([part.tail for part in kept], 1),
    )
    return labels, np.concatenate(logits, 1), right / (num_images * num_crops)


def model_labels(num_images: int, num_crops: int) -> tuple[TopK, NDArray[np.float32]]:
    """The label model's, its tail spread over the other classes in proportion to exp(2 z), z normal."""
    drawn = label_model.labels(0, num_images, num_crops, k=K, num_classes=CLASSES)
    labels = TopK(class_ids=drawn.class_ids, probs=drawn.probs, tail=drawn.tail)
    m = min(COMPARED_CROPS, num_crops)
    rng = np.random.default_rng(4)
    dense = np.exp(2 * rng.standard_normal((num_images, m, CLASSES), np.float32))
    ids = drawn.class_ids[:, :m].astype(np.intp)
    np.put_along_axis(dense, ids, 0, -1)
    dense *= (drawn.tail[:, :m] / dense.sum(-1))[..., None]
    np.put_along_axis(dense, ids, drawn.probs[:, :m], -1)
    return labels, np.log(np.maximum(dense, 1e-30))


def describe(labels: TopK, logits: NDArray[np.float32]) -> dict[str, Any]:
    """Sizes, the histogram of FerKD Table 1, laws of the 8-bit form, and divergences, of one teacher's labels."""
    crops = labels.tail.size
    largest = labels.probs[..., 0]
    edges = np.array(TABLE_1_EDGES, np.float32)
    bins = np.histogram(largest, edges)[0] / crops
    sizes, recovered = {}, {}
    for dtype in DTYPES:
        codec = choose_class_ids(MarginalSmoothing(k=K, dtype=dtype), labels, CLASSES)
        arrays = codec.encode(labels, CLASSES)
        by_field = {
            field.name: field_bytes(field, arrays[field.name]) / crops
            for field in codec.fields(CLASSES)
        }
        sizes[dtype] = {
            "total": sum(by_field.values()),
            "class_ids": codec.class_ids,
            **by_field,
        }
        recovered[dtype] = codec.decode(arrays, CLASSES)
    reference, coarse = recovered["float32"], recovered["uint8"]
    kl = _sparse_kl(reference, coarse)
    coarse_bins = np.histogram(coarse.probs[..., 0], edges)[0] / crops
    return {
        "crops": crops,
        "mean_max_probability": float(largest.mean()),
        "bins": bins.tolist(),
        "distinct_ids_per_image": float(np.mean([len(np.unique(ids)) for ids in labels.class_ids])),
        "mean_tail": float(labels.tail.mean()),
        "bytes_per_crop": sizes,
        "uint8_kl_mean": float(kl.mean()),
        "uint8_kl_worst": float(kl.max()),
        "uint8_max_probability_error": float(np.abs(coarse.probs[..., 0] - largest).max()),
        "uint8_bins_error": float(np.abs(coarse_bins - bins).max()),
        "kl": divergences(labels, logits),
    }


def _sparse_kl(reference: Any, other: Any) -> NDArray[np.float64]:
    p, q = reference.probs.astype(np.float64), other.probs.astype(np.float64)
    r, s = reference.rest.astype(np.float64), other.rest.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(p > 0, p * (np.log(p) - np.log(q)), 0).sum(-1)
        rest = np.where(r > 0, (CLASSES - K) * r * (np.log(r) - np.log(s)), 0)
    return np.maximum(kept + rest, 0)


def divergences(labels: TopK, logits: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Mean KL in nats from softmax(logits / T) to the recovered label, per temperature and stored dtype."""
    m = logits.shape[1]
    some = TopK(
        class_ids=labels.class_ids[:, :m], probs=labels.probs[:, :m], tail=labels.tail[:, :m]
    )
    found: dict[str, dict[str, float]] = {}
    for temperature in TEMPERATURES:
        true = softmax(logits, temperature)
        row = {}
        for dtype in DTYPES:
            codec = MarginalSmoothing(k=K, dtype=dtype)
            arrays = codec.encode(some, CLASSES)
            row[dtype] = float(kl(true, codec.recover(arrays, CLASSES, temperature)).mean())
            if dtype == "float32":
                row["reused"] = float(kl(true, codec.recover(arrays, CLASSES)).mean())
        found[f"{temperature:g}"] = row
    return found


def run(num_images: int, num_crops: int, steps: int) -> dict[str, Any]:
    teachers: dict[str, Any] = {}
    for name, make in TASKS.items():
        rng = np.random.default_rng(7)
        task = make()
        model = train(task, steps, rng)
        labels, logits, top1 = teacher_labels(task, model, num_images, num_crops, rng)
        teachers[name] = {"top1_on_crops": top1, **describe(labels, logits)}
    teachers[f"label model {label_model.NAME}"] = describe(*model_labels(num_images, num_crops))
    return {
        "images": num_images,
        "crops": num_crops,
        "steps": steps,
        "k": K,
        "classes": CLASSES,
        "teachers": teachers,
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("labelstore", "numpy", "torch")},
    }


def markdown(result: dict[str, Any]) -> str:
    teachers = result["teachers"]
    head = "| | " + " | ".join(teachers) + " |\n|---|" + "---|" * len(teachers)
    rows = [
        (
            "top-1 on crops",
            lambda t: "-" if "top1_on_crops" not in t else f"{t['top1_on_crops']:.1%}",
        ),
        ("mean largest probability", lambda t: f"{t['mean_max_probability']:.3f}"),
        ("mean tail beyond K = 5", lambda t: f"{t['mean_tail']:.4f}"),
        ("distinct classes per image", lambda t: f"{t['distinct_ids_per_image']:.0f}"),
    ]
    rows += [
        (
            f"labels, {dtype}, B per crop",
            lambda t, d=dtype: f"{t['bytes_per_crop'][d]['total']:.2f}",
        )
        for dtype in DTYPES
    ]
    rows += [
        ("form of class ids", lambda t: t["bytes_per_crop"]["float16"]["class_ids"]),
        ("ids alone", lambda t: f"{_ids(t):.2f}"),
        ("uint8: KL to float32, mean", lambda t: f"{t['uint8_kl_mean']:.1e}"),
        ("worst", lambda t: f"{t['uint8_kl_worst']:.1e}"),
        (
            "uint8: error of the largest probability, worst",
            lambda t: f"{t['uint8_max_probability_error']:.4f}",
        ),
        (
            "uint8: FerKD Table 1's bins, largest difference",
            lambda t: f"{t['uint8_bins_error']:.2%}",
        ),
    ]
    for temperature in TEMPERATURES:
        name = f"{temperature:g}"
        rows.append(
            (
                f"KL at T = {name}: T = 1 label reused",
                lambda t, n=name: f"{t['kl'][n]['reused']:.2g}",
            )
        )
        rows.append(
            (
                f"KL at T = {name}: float32 / float16 / uint8",
                lambda t, n=name: " / ".join(f"{t['kl'][n][d]:.3g}" for d in DTYPES),
            )
        )
    table = "\n".join(
        f"| {title} | " + " | ".join(value(t) for t in teachers.values()) + " |"
        for title, value in rows
    )
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return f"""# A real network's tail

`python -m benchmarks.real_tail --images {result["images"]} --crops {result["crops"]} --steps {result["steps"]} --report`, {result["date"]},
{result["processor"]}; {versions}.

{result["images"]} images x {result["crops"]} crops, C = 1000, K = 5, one shard, boxes and flips left out. `numbers` and `places` are
convolutional networks trained here on real pictures ({result["steps"]} steps of 256 crops) and asked about pictures that they were not trained on;
the label model's tail is spread as exp(2 z), z normal. KL in nats from softmax(logits / T), over {COMPARED_CROPS} crops of each image.

{head}
{table}
"""


def _ids(teacher: dict[str, Any]) -> float:
    sizes = teacher["bytes_per_crop"]["float16"]
    return sum(
        size for name, size in sizes.items() if name.startswith("class_") and name != "class_ids"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=512)
    options.add_argument("--crops", type=int, default=100)
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--report", action="store_true", help="write benchmarks/reports/")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    if min(args.images, args.crops, args.steps) < 1:
        options.error("--images, --crops and --steps: at least 1 of each")
    result = run(args.images, args.crops, args.steps)
    if args.report:
        REPORT.write_text(json.dumps(result, indent=1) + "\n")
        REPORT.with_suffix(".md").write_text(markdown(result))
    print(json.dumps(result, separators=(",", ":")) if args.json else markdown(result))


if __name__ == "__main__":
    main()
