"""Bytes per crop of every stored array on the label model, and what other layouts of the same values would take.

    python -m benchmarks.label_layout [--crops-per-shard 100] [--sweep] [--json]

One shard of images, encoded as a store does it: blosc-zstd, chunks of all images x 20 crops, per-chunk crc32c not
counted (4 bytes in 20,480 crops). `--sweep` tries every shuffle, axis order and zstd level on each array. The
catalogue is not measured here: its images table adds 0.3 to 0.6 bytes per crop at M=200.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import label_model
from labelstore.codecs import MarginalSmoothing, TopK
from labelstore.codecs.base import Field
from labelstore.codecs.codec_traits import field_bytes
from labelstore.store.layout import PLAN_FIELDS

CATALOGUE = 0.45
"""Bytes per crop of the images table at M=200, from the design's range of 0.3 to 0.6."""
DTYPES = ("float32", "float16", "uint8")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=1024)
    options.add_argument("--crops-per-shard", type=int, default=200)
    options.add_argument("--k", type=int, default=5)
    options.add_argument("--num-classes", type=int, default=1000)
    options.add_argument("--sweep", action="store_true", help="every shuffle, axis order and level")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()

    labels = label_model.labels(
        0, args.images, args.crops_per_shard, k=args.k, num_classes=args.num_classes
    )
    arrays = stored_arrays(labels, args.num_classes)
    crops = labels.probs.shape[0] * labels.probs.shape[1]
    sizes = {name: field_bytes(field, array) / crops for name, (field, array) in arrays.items()}
    distinct = float(np.mean([len(np.unique(ids)) for ids in labels.class_ids]))
    result = {
        "images": args.images,
        "crops": args.crops_per_shard,
        "label_model": label_model.NAME,
        "distinct_ids_per_image_mean": round(distinct, 1),
        "bytes_per_crop": {name: round(size, 3) for name, size in sizes.items()},
        **totals(sizes),
        "decode_million_crops_per_s": {
            dtype: round(decode_rate(labels, dtype, args.num_classes), 1) for dtype in DTYPES
        },
    }
    if args.sweep:
        result["sweep"] = {name: sweep(*pair, crops) for name, pair in arrays.items()}
    if not args.json:
        print_table(result, arrays)
    else:
        print(json.dumps(result, separators=(",", ":")))


def top_k_of(labels: label_model.ModelLabels) -> TopK:
    return TopK(class_ids=labels.class_ids, probs=labels.probs, tail=labels.tail)


def stored_arrays(
    labels: label_model.ModelLabels, num_classes: int
) -> dict[str, tuple[Field, NDArray[Any]]]:
    """Every array of every form, by name; those of float32 have the dtype in theirs."""
    found = {}
    k = labels.probs.shape[-1]
    for form, dtype in product(("plain", "table"), DTYPES):
        codec = MarginalSmoothing(k=k, dtype=dtype, class_ids=form)
        encoded = codec.encode(top_k_of(labels), num_classes)
        for field in codec.fields(num_classes):
            float32 = " (float32)" if field.dtype == "<f4" else ""
            found[field.name + float32] = field, encoded[field.name]
    box, flip = PLAN_FIELDS
    found["box"] = box, labels.box
    found["flip"] = flip, labels.flip.astype(np.uint8)
    return found


def totals(sizes: dict[str, float]) -> dict[str, float]:
    """Bytes per crop of a whole store, box, flip and catalogue included."""
    table = sizes["class_rank"] + sizes["class_table"] + sizes["class_escape"]
    around = min(sizes["class_id"], table) + sizes["flip"] + CATALOGUE
    probs = {
        "float32": sizes["probability (float32)"] + sizes["tail (float32)"],
        "float16": sizes["probability"] + sizes["tail_code"],
        "uint8": sizes["probability_code"],
    }
    stored = {f"total_{dtype}": around + size + sizes["box"] for dtype, size in probs.items()}
    seeded = {f"total_seeded_{d}": around - sizes["flip"] + size for d, size in probs.items()}
    return {name: round(size, 2) for name, size in (stored | seeded).items()}


def decode_rate(labels: label_model.ModelLabels, dtype: str, num_classes: int) -> float:
    """Millions of crops per second from the arrays of one chunk column to ids, probabilities and rest."""
    column = TopK(
        class_ids=labels.class_ids[:, :20], probs=labels.probs[:, :20], tail=labels.tail[:, :20]
    )
    codec = MarginalSmoothing(k=labels.probs.shape[-1], dtype=dtype, class_ids="table")
    arrays = codec.encode(column, num_classes)
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        codec.decode(arrays, num_classes)
        seconds.append(time.perf_counter() - start)
    return column.tail.size / min(seconds) / 1e6


def sweep(field: Field, array: NDArray[Any], crops: int) -> dict[str, float]:
    """Bytes per crop under every layout, smallest first."""
    orders = (False, True) if field.shape else (False,)
    found = {}
    for shuffle, first, level in product(
        ("bitshuffle", "shuffle", "noshuffle"), orders, (1, 3, 5, 7, 9)
    ):
        other = replace(field, shuffle=shuffle, row_axes_first=first, level=level)
        name = f"{shuffle}, {'row axes first' if first else 'as it is'}, level {level}"
        found[name] = round(field_bytes(other, array) / crops, 3)
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def print_table(result: dict[str, Any], arrays: dict[str, tuple[Field, NDArray[Any]]]) -> None:
    print(f"{result['images']} images x {result['crops']} crops, bytes per crop")
    for name, size in result["bytes_per_crop"].items():
        field = arrays[name][0]
        order = ", row axes first" if field.row_axes_first else ""
        print(f"  {name:24s}{size:7.3f}   {field.shuffle}, level {field.level}{order}")
        for layout, other in list(result.get("sweep", {}).get(name, {}).items())[:3]:
            print(f"      {layout:44s}{other:7.3f}")
    for name, size in result.items():
        if name.startswith("total"):
            print(f"  {name:24s}{size:7.2f}   smaller form of ids, catalogue at {CATALOGUE}")
    for dtype, rate in result["decode_million_crops_per_s"].items():
        print(f"  decode {dtype:17s}{rate:7.1f}   million crops/s")


if __name__ == "__main__":
    main()
