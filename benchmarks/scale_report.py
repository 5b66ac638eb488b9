"""The scale run's figures as a page: targets with verdicts, sizes by array, the other layouts, the setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FULL = 1_281_167


@dataclass(frozen=True)
class Target:
    """One promise of the store, and how its figure is read."""

    key: str
    words: str
    limit: float
    at_most: bool = True
    scales: bool = False
    """Grows with the number of images: a smaller run is held against a share of the limit."""
    shown: Callable[[float], str] = "{:,.2f}".format
    of_few_crops: float | None = None
    """The limit below 200 crops, where what an image takes once is shared by fewer."""

    def limit_at(self, num_crops: int) -> float:
        """The limit for M crops per image."""
        return self.limit if self.of_few_crops is None or num_crops >= 200 else self.of_few_crops


TARGETS = (
    Target(
        "bytes_per_crop_float16",
        "bytes per crop, float16, everything on disk",
        17.5,
        of_few_crops=18.5,
    ),
    Target("bytes_per_crop_uint8", "bytes per crop, uint8", 12.5, of_few_crops=13.4),
    Target(
        "bytes_per_crop_seeded_uint8",
        "bytes per crop, uint8, seeded crops",
        8.0,
        of_few_crops=9.0,
    ),
    Target("pass_seconds", "labels of one pass, m = 4, seconds", 1.25, scales=True),
    Target("pass_mb", "memory that it adds, MB", 600.0, shown="{:,.0f}".format),
    Target(
        "pass_ratio_vs_fkd",
        "crops/s against FKD's files",
        100.0,
        at_most=False,
        shown="{:,.0f}x".format,
    ),
    Target("draw_file_seconds", "draw file of a run under a mask, seconds", 60.0, scales=True),
    Target("stats_ratio_vs_decode", "`stats` against a bare decode", 2.0, shown="{:.2f}x".format),
    Target(
        "calibrate_ratio_vs_decode",
        "`calibrate` against a bare decode",
        3.0,
        shown="{:.2f}x".format,
    ),
    Target("random_image_ms", "one random image, all crops, CPU ms", 20.0, shown="{:.1f}".format),
)


def markdown(result: dict[str, Any]) -> str:
    """The whole page."""
    return "\n\n".join(
        (
            _head(result),
            _targets(result),
            _why(result),
            _sizes(result),
            _times(result),
            _others(result),
        )
    )


def verdict(target: Target, value: float, num_images: int, num_crops: int) -> str:
    """met, or by how much missed; a smaller run's seconds against its share of the limit."""
    limit = target.limit_at(num_crops)
    if target.scales:
        limit *= min(1.0, num_images / FULL)
    ratio = value / limit if target.at_most else limit / value
    return "**met**" if ratio <= 1 else f"missed, {ratio:.2f} times the limit"


def _head(result: dict[str, Any]) -> str:
    setting = result["setting"]
    versions = ", ".join(f"{name} {number}" for name, number in setting["versions"].items())
    load = ", ".join(map(str, setting["load_average"]))
    size = f"{result['images']:,} images x {result['crops']} crops"
    whole = "" if result["images"] == FULL else f" (of ImageNet's {FULL:,})"
    return f"""# The store at ImageNet's size

`python -m benchmarks.imagenet_scale --images {result["images"]} --crops {result["crops"]} --report`, {setting["date"]}, commit
{setting["commit"]}; {size}{whole}, K = 5, labels of label model
"{result["label_model"]}" ({result["distinct_ids_per_image_mean"]} distinct classes per image).

{setting["processor"]}, {setting["cores"]} cores, {setting["memory_gb"]} GB, no GPU. Load average at the end: {load}. Where that is above {setting["cores"]}, others were at
work on the same cores: every time below contains their share, and a ratio is only as good as that share was even. Ratios to a bare
decode come from one process that does both in turn; the other layouts were read after the store. {versions}."""


def _targets(result: dict[str, Any]) -> str:
    rows = ["| promise | limit | measured | |", "|---|---|---|---|"]
    for target in TARGETS:
        most = target.limit_at(result["crops"])
        limit = f"{'<=' if target.at_most else '>='} {target.shown(most)}"
        if target.scales and result["images"] < FULL:
            share = most * result["images"] / FULL
            limit += f", here {target.shown(share)}"
        value = result[target.key]
        said = verdict(target, value, result["images"], result["crops"])
        rows.append(f"| {target.words} | {limit} | {target.shown(value)} | {said} |")
    return "## Promises\n\n" + "\n".join(rows)


def _why(result: dict[str, Any]) -> str:
    passes, draw = result["measured"]["pass"], result["measured"]["draw_file"]
    calibrate, decode = result["measured"]["calibrate"], result["measured"]["stats"]
    return f"""A pass's seconds are the mean over the passes of one chunk column, the better of two columns ({passes["first_column"]:.2f} s the
first); page cache warm, two threads. Its process took {passes["peak_mb"]:,.0f} MB at most, of which {passes["start_mb"]:,.0f} MB before anything was
read (the trainer's imports). Setting up a source adds {passes["setup_seconds"]:.1f} s once. The draw file wrote {draw["positions"]} positions, {draw["bytes"] / 1e9:.1f} GB,
{draw["ratio_vs_decode"]:.1f} times a bare decode of labels and boxes ({draw["decode_seconds"]:.1f} s, one thread). `stats` is summary, histogram and storage of
one label set: {decode["seconds"]:.2f} CPU s against {decode["decode_seconds"]:.2f}, of which opening the label set takes {decode["opening_seconds"]:.2f}, the
summary {decode["summary_seconds"]:.2f}, the storage {decode["storage_seconds"]:.2f} and the histogram {decode["histogram_seconds"]:.2f}. `calibrate` computes and commits a mask: {calibrate["seconds"]:.2f} CPU s against
{calibrate["decode_seconds"]:.2f}, {calibrate["wall_seconds"]:.1f} s with what it waits for the disk;
{calibrate["mask_bytes_per_crop"]:.3f} B per crop, peak {calibrate["peak_mb"]:,.0f} MB. The bare decode reads the same files and decompresses the same chunks on one thread, without
checksums or axis order.{_grown(result)}"""


def _grown(result: dict[str, Any]) -> str:
    if "stats_fixed_seconds" not in result:
        return ""
    stats, calibrate = (
        f"{result[f'{name}_fixed_seconds']:.2f} CPU s, whatever the size, and {result[f'{name}_ratio_of_further_crops']:.2f} times the "
        "bare decode of its crops"
        for name in ("stats", "calibrate")
    )
    return f""" As a line through this store and one of {result["measured"]["stats_small"]["images"]:,} images, `stats` takes {stats};
`calibrate` {calibrate}."""


def _sizes(result: dict[str, Any]) -> str:
    sizes = result["bytes_per_crop"]
    names = list(dict.fromkeys(name for parts in sizes.values() for name in parts))
    names.remove("total")
    rows = ["| bytes per crop | " + " | ".join(sizes) + " |", "|---|" + "---|" * len(sizes)]
    for name in [*names, "total"]:
        cells = [f"{parts[name]:.3f}" if name in parts else "-" for parts in sizes.values()]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    note = (
        "Metadata and catalogue are the whole store's, so that those of the other label set weigh in twice. Indexes are "
        "the shards' own, inside their files."
    )
    return "## Bytes\n\n" + "\n".join(rows) + f"\n\n{note}"


def _times(result: dict[str, Any]) -> str:
    measured = result["measured"]
    rows = ["| | |", "|---|---|"]
    rows += [f"| writing {name}, crops/s | {rate:,.0f} |" for name, rate in result["write"].items()]
    rows.append(f"| pass, crops/s | {measured['pass']['crops_per_s']:,.0f} |")
    opened, image = measured["open"], measured["random_image"]
    rows += [
        f"| opening, ms | {opened['open_ms']:.0f} |",
        f"| reading and checking the images table, s | {opened['images_table_seconds']:.1f} |",
        f"| opening a label set after that, s | {opened['label_set_seconds']:.2f} |",
        f"| memory after both, MB (libraries {opened['start_mb']:.0f}) | {opened['peak_mb']:,.0f} |",
        f"| random image, all crops, with waiting, median and 90 %, ms | {image['all_crops_ms']:.1f}, {image['all_crops_p90_ms']:.1f} |",
        f"| random image, m crops of one chunk column, ms | {image['m_crops_ms']:.1f} |",
        f"| `stats` of uint8 labels against its bare decode | {measured['stats_uint8']['ratio']:.2f}x |",
        f"| peak memory of `stats`, MB | {measured['stats']['peak_mb']:,.0f} |",
        f"| peak memory of the draw file, MB (libraries {measured['draw_file']['start_mb']:,.0f}) | {measured['draw_file']['peak_mb']:,.0f} |",
    ]
    return "## Times\n\n" + "\n".join(rows)


def _others(result: dict[str, Any]) -> str:
    sizes, ours = result["bytes_per_crop"], result["measured"]["pass"]["crops_per_s"]
    written, image = result["write_crops_per_s"], result["random_image_ms"]
    cells = (f"{sizes['float16']['total']:.1f}", f"{written:,.0f}", f"{image:.2f}", f"{ours:,.0f}")
    rows = [
        "| layout | bytes per crop | write crops/s | one image, ms | pass, crops/s | ours / theirs |",
        "|---|---|---|---|---|---|",
        f"| this store, float16, tail kept | {' | '.join(cells)} | |",
    ]
    for row in result["others"]:
        rate = "-" if row["write_crops_per_s"] is None else f"{row['write_crops_per_s']:,.0f}"
        ratio = ours / row["pass_crops_per_s"]
        rows.append(
            f"| {row['layout']} | {row['bytes_per_crop']:.1f} | {rate} | {row['random_image_ms']:.2f} | "
            f"{row['pass_crops_per_s']:,.0f} | {ratio:,.0f}x |"
        )
    images = result["others"][0]["images"]
    notes = "; ".join(dict.fromkeys(f"{row['layout']}: {row['note']}" for row in result["others"]))
    return f"""## Other layouts

The first {images:,} images of the same labels, **not** the whole set; theirs are written without fsync, checksums or ledger, and hold no
tail. Each was read back and compared. A pass is m = 4 crops of images in random order, timed on a sample; the store's is of its whole
size. FKD's files take whole disk blocks: {result["others"][0]["bytes_per_crop_in_blocks"]:.1f} B per crop.

{chr(10).join(rows)}

{notes}.
"""
