"""What an embedding costs in bytes, in cosine, and in what a student learns from it.

    python -m benchmarks.embeddings --weights tf_efficientnet_lite0.safetensors [--crops 40] [--seeds 3] [--steps 200] [--report]

The teacher is a network of timm with ImageNet weights on seeded random crops of the photographs that scikit-image and scikit-learn ship.
Two outputs that are no classes: its 1,280 pooled features, and 3,000 scores, the cosines of the features to 3,000 directions that are
drawn once (the size of SwAV's prototypes; these are not learnt). Codebooks are learnt from the first half of each photograph's crops, and
cosines are of the other half, which k-means never saw. A student of four convolutions learns the 3,000 scores of all crops at 32 x 32
pixels by cosine; a linear probe (ridge regression on its 128 pooled features) then tells which photograph a new crop is of, on crops that
neither student nor probe saw. The interval is 95 % over `--seeds` students of the float16 scores.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.machine import processor
from labelstore.analysis.output_cosine import cosine
from labelstore.codecs import Logits, ProductCodes, RawOutputs
from labelstore.codecs.codec_traits import stored_bytes
from labelstore.cropping.crop_plan import CropPlan
from labelstore.cropping.replay import replay_many
from labelstore.testing.digit_pictures import PHOTOGRAPHS, photographs
from trainer.losses import EmbeddingLoss

FORMS: dict[str, RawOutputs] = {
    "float16": Logits(),
    "uint8": Logits(dtype="uint8"),
    "pq, 8 values": ProductCodes(values_per_code=8),
    "pq, 20 values": ProductCodes(),
}
LEARNT = ("float16", "uint8", "pq, 20 values")
"""Forms that students learn from."""
DIRECTIONS = 3000
SIDE, NEW_CROPS = 32, 40
"""Pixels of a student's crop; crops of each photograph that a probe is measured on."""
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t for 95 % by number of seeds."""
TARGET = 1 / 32
"""Of float16's bytes, at 3,000 outputs."""
REPORT = Path(__file__).parent / "reports" / "embeddings.json"


def crop_pixels(side: int, crops: range, interpolation: str) -> Tensor:
    """(photographs, crops, 3, side, side) uint8 of seeded random crops, by their numbers."""
    found = []
    for name, picture in zip(PHOTOGRAPHS, photographs(), strict=True):
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        boxes, flips = CropPlan(seed=0).crops(name, *pixels.shape[1:], np.asarray(crops))
        out = torch.empty(len(crops), 3, side, side, dtype=torch.uint8)
        replay_many(pixels, boxes, flips, side, interpolation, out)
        found.append(out)
    return torch.stack(found)


def pooled_features(architecture: str, weights: Path, num_crops: int) -> NDArray[np.float32]:
    """(photographs, crops, D) outputs of the network without its classifier."""
    import timm

    model = timm.create_model(architecture, checkpoint_path=str(weights)).eval()
    model.reset_classifier(0)
    config = timm.data.resolve_data_config(model=model)
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) * 255 for name in ("mean", "std"))
    pixels = crop_pixels(config["input_size"][-1], range(num_crops), config["interpolation"])
    with torch.inference_mode():
        found = [
            model((part.float() - mean) / std).numpy() for part in pixels.flatten(0, 1).split(32)
        ]
    return np.concatenate(found).reshape(*pixels.shape[:2], -1)


def scores(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, m, D) features -> (n, m, 3000) cosines to directions drawn once."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((features.shape[-1], DIRECTIONS), np.float32)
    directions /= np.linalg.norm(directions, axis=0)
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return np.asarray(unit @ directions, np.float32)


def measure(outputs: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Bytes per crop and cosine of every form of outputs (n, m, D), on crops that no codebook has seen."""
    half, count = outputs.shape[1] // 2, outputs.shape[-1]
    seen, unseen = outputs[:, :half], outputs[:, half:]
    found = {}
    for name, form in FORMS.items():
        codec = _trained(form, seen)
        near = cosine(unseen, codec.outputs(codec.encode(unseen, count), count))
        found[name] = {
            "bytes_per_crop": stored_bytes(codec, unseen, count) / unseen[..., 0].size,
            "cosine": float(near.mean()),
            "least_cosine": float(near.min()),
        }
    for row in found.values():
        row["of_float16"] = row["bytes_per_crop"] / (2 * count)
    return found


def _trained(form: RawOutputs, sample: NDArray[np.float32]) -> Any:
    if isinstance(form, ProductCodes):
        return form.trained(sample.reshape(-1, sample.shape[-1]))
    return form


def student(
    pixels: Tensor, wanted: NDArray[np.float32], *, seed: int, steps: int
) -> tuple[nn.Module, float]:
    """A network (B, 3, 32, 32) -> (B, 128) trained with a projection to `wanted` (r, D), and its last loss."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128, 128):
        layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(channels, wanted.shape[-1])
    optimiser = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    criterion, ids, rest = EmbeddingLoss("cosine"), torch.arange(wanted.shape[-1]), torch.zeros(64)
    labels, rng = torch.from_numpy(wanted), torch.Generator().manual_seed(seed)
    last = 0.0
    for _ in range(steps):
        rows = torch.randint(len(pixels), (64,), generator=rng)
        outputs = head(backbone(_scaled(pixels[rows])))
        loss = criterion(outputs, ids.expand(64, -1), labels[rows], rest)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        last = float(loss.detach())
    return backbone.eval(), last


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


@torch.inference_mode()
def probe(backbone: nn.Module, pixels: Tensor, others: Tensor) -> float:
    """Percent of crops `others` (n, m, 3, S, S) whose photograph a linear probe of crops `pixels` names."""
    n = len(pixels)
    known, new = (backbone(_scaled(part.flatten(0, 1))).double() for part in (pixels, others))
    mean, deviation = known.mean(0), known.std(0).clamp_min(1e-6)
    known, new = (known - mean) / deviation, (new - mean) / deviation
    truth = torch.arange(n).repeat_interleave(pixels.shape[1])
    one_hot = nn.functional.one_hot(truth, n).double() - 1 / n
    ridge = known.T @ known + len(known) * 1e-2 * torch.eye(known.shape[1]).double()
    weights = torch.linalg.solve(ridge, known.T @ one_hot)
    right = (new @ weights).argmax(1) == torch.arange(n).repeat_interleave(others.shape[1])
    return 100 * float(right.double().mean())


def students(outputs: NDArray[np.float32], seeds: int, steps: int) -> dict[str, Any]:
    """Probe accuracy of students of each form, and the interval of those of float16."""
    crops, count = outputs.shape[1], outputs.shape[-1]
    pixels = crop_pixels(SIDE, range(crops), "bilinear")
    new = crop_pixels(SIDE, range(crops, crops + NEW_CROPS), "bilinear")
    half = outputs[:, : crops // 2]
    found: dict[str, list[float]] = {}
    for name in LEARNT:
        codec = _trained(FORMS[name], half)
        wanted = codec.outputs(codec.encode(outputs, count), count).reshape(-1, count)
        found[name] = [
            probe(student(pixels.flatten(0, 1), wanted, seed=s, steps=steps)[0], pixels, new)
            for s in range(seeds)
        ]
    full = np.array(found["float16"])
    reach = T_95[seeds] * full.std(ddof=1) / np.sqrt(seeds)
    return {
        "probe": found,
        "interval": [float(full.mean() - reach), float(full.mean() + reach)],
        "within": {
            name: bool(abs(np.mean(values) - full.mean()) <= reach)
            for name, values in found.items()
        },
    }


def described(
    architecture: str, features: NDArray[np.float32], seeds: int, steps: int
) -> dict[str, Any]:
    """The result for pooled features (n, m, D)."""
    wide = scores(features)
    return {
        "architecture": architecture,
        "images": features.shape[0],
        "crops": features.shape[1],
        "seeds": seeds,
        "steps": steps,
        "features": measure(features),
        "scores": measure(wide),
        "students": students(wide, seeds, steps),
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "versions": {name: version(name) for name in ("labelstore", "numpy", "torch", "timm")},
    }


def markdown(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    parts = [
        f"""# Embeddings in fewer bytes

`python -m benchmarks.embeddings --weights WEIGHTS --architecture {result["architecture"]} --crops {result["crops"]} --seeds {result["seeds"]} --steps {result["steps"]} --report`,
{result["date"]}, {result["processor"]}; {versions}.

{result["architecture"]} on {result["images"]} photographs x {result["crops"]} crops: its pooled features, and their cosines to {DIRECTIONS:,} directions drawn once
(the size of SwAV's prototypes, not learnt). Labels alone; a codebook is learnt from half of the crops, {result["images"] * (result["crops"] // 2)} of them, which is
few for its 255 entries, and the cosine is of the other half. A codebook is counted apart: 512 B for each output, once for a label set.
"""
    ]
    for key, title in (("features", "Pooled features"), ("scores", f"{DIRECTIONS:,} scores")):
        rows = "\n".join(
            f"| {name} | {row['bytes_per_crop']:,.0f} | 1/{1 / row['of_float16']:.1f} | {row['cosine']:.4f} | {row['least_cosine']:.4f} |"
            for name, row in result[key].items()
        )
        parts.append(
            f"## {title}\n\n| form | B per crop | of float16, uncompressed | mean cosine | least |\n|---|---|---|---|---|\n{rows}\n"
        )
    found = result["students"]
    low, high = found["interval"]
    rows = "\n".join(
        f"| {name} | {np.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)}) | {'yes' if found['within'][name] else 'no'} |"
        for name, values in found["probe"].items()
    )
    parts.append(
        f"""## A student's linear probe

Four convolutions, {result["steps"]} steps of 64 crops of 32 x 32 pixels on the {DIRECTIONS:,} scores by cosine; then which of {result["images"]} photographs a crop is of, in
percent, on {NEW_CROPS} new crops of each. 95 % interval of the mean over {result["seeds"]} seeds with float16: {low:.1f} to {high:.1f}.

| learnt from | probe | within the interval |
|---|---|---|
{rows}
"""
    )
    return "\n".join(parts)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--architecture", default="tf_efficientnet_lite0")
    options.add_argument("--crops", type=int, default=40)
    options.add_argument("--seeds", type=int, default=3, choices=sorted(T_95))
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--report", action="store_true", help="write benchmarks/reports/")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    if min(args.crops // 2, args.steps) < 1:
        options.error("--crops: at least 2, --steps: at least 1")
    features = pooled_features(args.architecture, args.weights, args.crops)
    result = described(args.architecture, features, args.seeds, args.steps)
    if args.report:
        REPORT.write_text(json.dumps(result, indent=1) + "\n")
        REPORT.with_suffix(".md").write_text(markdown(result))
    print(json.dumps(result, separators=(",", ":")) if args.json else markdown(result))


if __name__ == "__main__":
    main()
