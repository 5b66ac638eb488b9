"""The loader benchmark's figures as a page: targets with verdicts first, then each comparison, then the setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """One promise, met from `limit` on."""

    key: str
    words: str
    limit: float
    shown: Callable[[float], str] = "{:.2f}x".format


TARGETS = (
    Target("pixel_ratio_vs_fkd_m1", "FKD's loader over ours, m = 1", 2.3),
    Target("pixel_ratio_vs_fkd", "FKD's loader over ours, m = 4", 3.7),
    Target("pixel_ratio_vs_fkd_m8", "FKD's loader over ours, m = 8", 4.2),
    Target("pixel_share_of_floor", "floor over ours, m = 4", 0.9, "{:.0%}".format),
    Target("label_crops_per_s", "labels, crops per second on one core", 5e6, "{:,.0f}".format),
    Target(
        "label_ratio_vs_fkd", "labels, against `torch.load` of FKD's files", 100, "{:,.0f}x".format
    ),
)


def report(result: dict[str, Any]) -> str:
    """The whole page."""
    parts = (
        _head(result),
        _targets(result),
        _pixels(result),
        _fresh(result),
        _labels(result),
        _step(result),
    )
    return "\n\n".join(parts) + "\n"


def _head(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    sizes = result["bytes_per_image"]
    return f"""# The loader

`python -m benchmarks.loader --rounds {result["rounds"]} --output benchmarks/reports`, {result["date"]}, {result["seconds"]:.0f} s. {result["cpu"]}, {result["cores"]} cores, load
average {result["load_average"]} at the end (other work on the machine); {versions}.
Real photographs as JPEG of {sizes["500x375"] / 1000:.0f} KB on average (500 x 375) and {sizes["2000x1500"] / 1000:.0f} KB (2000 x 1500, put together from
16 at their own resolution), M = {result["num_crops"]}, K = 5 of 1,000 classes, crops of 224. CPU time of all threads and processes, files in
the page cache, {result["workers"]} threads or worker processes; medians of {result["rounds"]} rounds in which the sides take turns."""


def _targets(result: dict[str, Any]) -> str:
    rows = [
        f"| {target.words} | {target.shown(result[target.key])} | >= {target.shown(target.limit)} | "
        f"{'met' if result[target.key] >= target.limit else '**missed**'} |"
        for target in TARGETS
    ]
    return "\n".join(["| | measured | target | |", "|---|---|---|---|", *rows])


def _pixels(result: dict[str, Any]) -> str:
    rows = []
    named = [(f"m = {m}", result["pixels"][f"m{m}"]) for m in (1, 4, 8)]
    for name, row in [*named, ("2000 x 1500, m = 4", result["pixels_2000x1500_m4"])]:
        rows.append(
            f"| {name} | {row['fkd_us']:,.0f} | {row['ours_us']:,.0f} | {row['floor_us']:,.0f} | "
            f"{row['ratio_vs_fkd']:.2f}x | {row['share_of_floor']:.0%} | {_range(row)} |"
        )
    scaled = result["scaled_decoding"]
    lines = [
        f"{round(d['side'])} pixels: mean {d['mean']:.2f}, 99 % within {d['p99']:.0f}, at most {d['largest']:.0f}"
        for d in scaled["pixels"]
    ]
    return f"""## Pixels

CPU microseconds per crop: reading, decoding, cropping, resizing, labels, batches. The floor is one decode and m resizes
by the functions that our loader uses, and nothing else: no file is read, no crop mirrored, no label looked up. What lies
between it and ours is reading and checking files, mirroring half of the crops, and handing the work to threads. Large
photographs were measured in {max(1, result["rounds"] // 2)} of the rounds.

| | FKD's loader | ours | floor | FKD / ours | floor / ours | FKD / ours, rounds |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Scaled decoding of the large photographs, measured and not used: Pillow at half size takes {scaled["half_ms_per_image"]:.1f} ms where our
decoder takes {scaled["whole_ms_per_image"]:.1f} ms for the whole ({scaled["time_ratio"]:.2f} times), and changes the pixels, in 1/255, of square crops of
{"; ".join(lines)}. Labels were made from the whole, and pixels are promised to within 1/255 of those."""


def _fresh(result: dict[str, Any]) -> str:
    row = result["fresh_crops_m1"]
    missing = "; ".join(f"{name} {why}" for name, why in result["not_measured"].items())
    others = "\n".join(
        f"{name.removesuffix('_us')}, {m}: {us:,.0f} us per crop."
        for m, found in result["others"].items()
        for name, us in found.items()
        if name.endswith("_us") and name != "rounds_us"
    )
    return f"""## Without stored labels

Random resized crop and flip, m = 1: {row["ours_us"]:,.0f} us per crop of our loader (`--labels ground-truth`), {row["timm_us"]:,.0f} us of torchvision's
ImageFolder in timm's `create_loader` up to its uint8 batches: {result["ratio_vs_timm_m1"]:.2f}x.

{others}{"Not measured: " + missing + "." if missing else ""}"""


def _labels(result: dict[str, Any]) -> str:
    row = result["labels"]
    low, high = row["range_crops_per_s"]
    return f"""## Labels

Batches of 1,024 crops in random order of {row["images"]:,} images, m = 4, from mapped files: {row["crops_per_s"]:,.0f} crops/s
({low:,.0f} to {high:,.0f}), {row["ns_per_crop"]:.0f} ns of CPU each. FKD's files (M = {row["num_crops"]}) read by `torch.load`: {row["fkd_us_per_crop"]:.1f} us per crop,
{row["ratio_vs_fkd"]:,.0f} times as long. Laying a pass out beforehand, of a store of {row["images_in_store"]:,} images, takes another
{row["laying_out_ns_per_crop"]:.0f} ns per crop; with it {row["ratio_vs_fkd_with_laying_out"]:,.0f} times (`benchmarks/imagenet_scale.py` measures that at ImageNet's size)."""


def _step(result: dict[str, Any]) -> str:
    step, gpu = result["step"], result["gpu"]
    if "skipped" in gpu:
        of_gpu = f"GPU: not measured, {gpu['skipped']}."
    else:
        rates = gpu["crops_per_s"]
        of_gpu = (
            f"{gpu['device']}, {gpu['student']} in bf16, {gpu['batch_size']} crops: {rates['stored_labels']:,.0f} crops/s with stored "
            f"labels, {rates['class_indices']:,.0f} with class indices. At {gpu['cpu_us_per_crop']:.0f} us per crop (m = 4) "
            f"{gpu['cores_to_keep_it_fed']:.1f} cores keep it fed."
        )
    per_core = 1e6 / result["pixels"]["m4"]["ours_us"]
    return f"""## A whole step

{step["student"]} at 224 on the CPU, m = 4: {step["step_us_per_crop"]:,.0f} us of CPU per crop, of which the loader is {step["loader_share"]:.1%}. The loss of stored labels takes
{step["soft_loss_us_per_crop"]:.1f} us per crop where that of class indices takes {step["hard_loss_us_per_crop"]:.1f}: {step["label_loss_share"]:.2%} of the step.

{of_gpu} One core of this machine makes {per_core:,.0f} crops/s at m = 4."""


def _range(row: dict[str, Any]) -> str:
    rounds = row["rounds_us"]
    ratios = [fkd / ours for fkd, ours in zip(rounds["fkd"], rounds["ours"], strict=True)]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"
