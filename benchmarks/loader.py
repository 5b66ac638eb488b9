"""The loader beside FKD's: CPU time per crop, pixels and labels, every ratio taken in this one run.

    python -m benchmarks.loader [--quick] [--output benchmarks/reports] [--json]

Pixels: the whole loader (`trainer.loader`) against FKD's way (`benchmarks.fkd_loader`) and against the floor, one JPEG
decode and m resizes, on photographs of 500 x 375 and 2000 x 1500 pixels; against ImageFolder with timm's loader on fresh
crops; against FFCV and DALI where they can be imported. Labels: batches of 1,024 crops out of a pass of ImageNet's size.
Then a whole training step with a small student, and, where there is a GPU, how many cores would feed it. Sides take turns
in every round; figures are medians over the rounds, in CPU time of all threads and worker processes, which other work
on the machine changes less than wall time. About five minutes on an idle core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

# as the command line sets it, before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks import loader_labels, loader_pixels, loader_scaled, loader_step
from benchmarks.loader_data import LoaderData, label_data, picture_data
from benchmarks.loader_others import others
from benchmarks.loader_pixels import Rounds, take_turns
from benchmarks.loader_report import TARGETS, report
from benchmarks.machine import processor

IMAGENET = 1_281_167


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured."""

    images: int = 96
    """Photographs of 500 x 375."""
    large_images: int = 16
    """Photographs of 2000 x 1500."""
    num_crops: int = 500
    """M of the photographs, as in FKD's released files."""
    rounds: int = 9
    label_images: int = IMAGENET
    stored_images: int = 4096
    """Images of the store whose labels are repeated to `label_images`."""
    label_crops: int = 200
    """M of the label side."""
    fkd_files: int = 256


QUICK = Scale(
    images=32, large_images=2, num_crops=20, rounds=1, label_images=4096, stored_images=64,
    label_crops=20, fkd_files=8,
)  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="a smoke test: figures mean nothing")
    options.add_argument("--rounds", type=int)
    options.add_argument("--workers", type=int, default=2, help="threads, or worker processes")
    options.add_argument("--output", type=Path, help="folder for loader.json and loader.md")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    scale = QUICK if args.quick else Scale()
    if args.rounds is not None:
        scale = Scale(**{**vars(scale), "rounds": args.rounds})
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), scale, args.workers)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "loader.json").write_text(json.dumps(result, indent=2) + "\n")
        (args.output / "loader.md").write_text(report(result))
    print(json.dumps(result, separators=(",", ":")) if args.json else report(result))


def measure(folder: Path, scale: Scale, workers: int) -> dict[str, Any]:
    """Everything; the keys are those of the report's JSON."""
    started, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ExitStack() as stack:
            found = _measure(folder, scale, workers, stack)
    finally:
        torch.set_num_threads(threads)
    return {
        **found,
        "targets": {target.key: target.limit for target in TARGETS},
        "rounds": scale.rounds,
        "workers": workers,
        "images": scale.images,
        "num_crops": scale.num_crops,
        "seconds": round(time.perf_counter() - started, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
        "cpu": processor(),
        "versions": {
            name: version(name) for name in ("torch", "torchvision", "pillow", "timm", "numpy")
        }
        | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }


def _measure(folder: Path, scale: Scale, workers: int, stack: ExitStack) -> dict[str, Any]:
    told("photographs and labels")
    data = picture_data(folder / "small", scale.images, scale.num_crops)
    given = {"rounds": scale.rounds, "workers": workers, "stack": stack, "scratch": folder}
    pixels = {m: told_of(m, loader_pixels.measure(data, m, **given)) for m in (1, 4, 8)}
    told("ImageFolder and timm's loader")
    fresh = loader_pixels.measure_fresh_crops(data, **given)
    beside, missing = _others(data, scale, workers, folder)
    told("large photographs")
    large_data = picture_data(folder / "large", scale.large_images, scale.num_crops, large=True)
    few = {**given, "rounds": max(1, scale.rounds // 2)}
    large = loader_pixels.measure(large_data, 4, **few)
    scaled = loader_scaled.measure(
        large_data, rounds=max(1, scale.rounds // 2), images=min(8, scale.large_images)
    )
    told("whole steps")
    step = loader_step.measure_cpu(data, **{**given, "rounds": max(1, scale.rounds // 4)})
    gpu = loader_step.measure_gpu(pixels[4].of("ours"))
    told("labels")
    labels = loader_labels.measure(
        label_data(folder / "labels", scale.stored_images, scale.label_crops, scale.fkd_files),
        scale.fkd_files,
        num_images=scale.label_images,
        rounds=scale.rounds,
        stack=stack,
        scratch=folder,
    )
    every = [*pixels.values(), fresh, large, *beside.values()]
    return {
        "pixel_ratio_vs_fkd": round(pixels[4].ratio("fkd", "ours"), 3),
        "pixel_share_of_floor": round(pixels[4].ratio("floor", "ours"), 4),
        "floor_ratio_vs_fkd": round(pixels[4].ratio("fkd", "floor"), 3),
        "label_crops_per_s": round(labels["crops_per_s"]),
        "label_ratio_vs_fkd": round(labels["ratio_vs_fkd"], 1),
        "crops_measured": sum(of.crops * len(side) for of in every for side in of.us.values()),
        "pixel_ratio_vs_fkd_m1": round(pixels[1].ratio("fkd", "ours"), 3),
        "pixel_ratio_vs_fkd_m8": round(pixels[8].ratio("fkd", "ours"), 3),
        "pixels": {f"m{m}": figures(rounds) for m, rounds in pixels.items()},
        "pixels_2000x1500_m4": figures(large),
        "fresh_crops_m1": figures(fresh),
        "ratio_vs_timm_m1": round(fresh.ratio("timm", "ours"), 3),
        "others": {f"m{m}": figures(rounds) for m, rounds in beside.items()},
        "not_measured": missing,
        "scaled_decoding": rounded(scaled),
        "labels": rounded(labels),
        "step": rounded(step),
        "gpu": rounded(gpu),
        "bytes_per_image": {
            "500x375": round(data.bytes_per_image),
            "2000x1500": round(large_data.bytes_per_image),
        },
    }


def _others(
    data: LoaderData, scale: Scale, workers: int, folder: Path
) -> tuple[dict[int, Rounds], dict[str, str]]:
    """FFCV and DALI at m = 1, 4, 8, against our fresh crops of the same run; and what cannot be imported."""
    found: dict[int, Rounds] = {}
    missing: dict[str, str] = {}
    for m in (1, 4, 8):
        sides, missing = others(data, m, workers, folder)
        if sides:
            found[m] = take_turns(sides, scale.rounds, len(data.keys) * m)
    return found, missing


def figures(rounds: Rounds) -> dict[str, Any]:
    """Medians and all rounds, CPU microseconds per crop."""
    found: dict[str, Any] = {f"{name}_us": round(rounds.of(name), 1) for name in rounds.us}
    if {"ours", "fkd", "floor"} <= rounds.us.keys():
        found["ratio_vs_fkd"] = round(rounds.ratio("fkd", "ours"), 3)
        found["share_of_floor"] = round(rounds.ratio("floor", "ours"), 4)
        found["floor_ratio_vs_fkd"] = round(rounds.ratio("fkd", "floor"), 3)
    return {
        **found,
        "rounds_us": {name: [round(us) for us in rounds.us[name]] for name in rounds.us},
    }


def rounded(value: Any) -> Any:
    """The same with four digits of every fraction."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def told(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def told_of(m: int, rounds: Rounds) -> Rounds:
    sides = ", ".join(f"{name} {rounds.of(name):.0f}" for name in rounds.us)
    print(f"m={m}: {sides} us of CPU per crop", file=sys.stderr, flush=True)
    return rounds


if __name__ == "__main__":
    main()
