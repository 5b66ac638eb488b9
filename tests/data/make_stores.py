"""Makes the small stores of this format that every later version must open: `python -m tests.data.make_stores`.

Three folders per format and backend, tests/data/v1-zarr-ms and so on, frozen, each below 200 KB, and beside each a file
NAME.json with SHA-256 digests of everything that a reader gets from it. They are made once per format, by the
version that releases it, and committed; `tests/stress/test_old_formats.py` opens all that are there.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np

import labelstore
from labelstore.catalogue import FORMAT_VERSION
from labelstore.codecs import Full, Hard, LabelCodec, MarginalRenorm, MarginalSmoothing
from labelstore.integrity import freeze
from labelstore.store import Store
from labelstore.testing.filled_store import add_label_set, fill_blocks, filled_store

DATA = Path(__file__).parent
BACKENDS = ("zarr", "hdf5")
NUM_IMAGES, NUM_CROPS, NUM_CLASSES, LEFT_OUT = 6, 4, 12, 4
PARTS: dict[str, dict[str, LabelCodec]] = {
    "ms": {"ms16": MarginalSmoothing(k=3)},
    "eight": {"ms8": MarginalSmoothing(k=3, dtype="uint8"), "hard": Hard()},
    "full": {"full16": Full(), "mr16": MarginalRenorm(k=3)},
}
"""Several stores per backend, so that each stays small: label set -> codec. The first has the mask."""


def labels() -> np.ndarray:
    """(N, M, C) float32, from flat to sharp; equal on every machine."""
    rng = np.random.Generator(np.random.Philox(1))
    logits = rng.standard_normal((NUM_IMAGES, NUM_CROPS, NUM_CLASSES))
    logits *= np.linspace(0.5, 9, NUM_IMAGES)[:, None, None]
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return (probs / probs.sum(-1, keepdims=True)).astype(np.float32)


def make(path: Path, backend: str, part: str) -> None:
    """One frozen store of some codecs, a mask, and an image that was left out."""
    building = path.with_name(f".{path.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    (first, codec), *others = PARTS[part].items()
    store = filled_store(
        building,
        labels(),
        codec,
        name=first,
        images_per_shard=4,
        crops_per_shard=4,
        backend=backend,
        bad={LEFT_OUT},
    )
    with store:
        for name, codec in others:
            add_label_set(store, codec, NUM_CLASSES, name=name)
            fill_blocks(store, labels(), name=name, bad={LEFT_OUT})
        if part == "ms":
            labelstore.calibrate(store.label_set(first), name="ferkd")
        freeze(store, path)
    shutil.rmtree(building)


def answers(store: Store) -> dict[str, str]:
    """Digest of everything that a reader gets; labels to 6 digits, since platforms may round the last ones."""

    def digest(array: np.ndarray) -> str:
        plain = np.ascontiguousarray(array)
        if plain.dtype.kind == "f":
            plain = np.round(plain.astype(np.float64), 6) + 0.0
        return hashlib.sha256(f"{plain.shape} {plain.dtype}".encode() + plain.tobytes()).hexdigest()

    found = {"images": digest(np.array(list(store.image_columns["key"]), dtype="S"))}
    for name in store.label_sets:
        held = store.label_set(name)
        for block in held.blocks:
            boxes, flips = held.crops(block)
            found[f"{name}/{block}/labels"] = digest(np.nan_to_num(held.dense(block), nan=-1))
            found[f"{name}/{block}/boxes"] = digest(boxes)
            found[f"{name}/{block}/flips"] = digest(flips)
    for name in store.masks:
        mask = store.mask(name)
        for block in mask.blocks:
            found[f"{name}/{block}/regions"] = digest(mask.regions(block))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DATA)
    folder = parser.parse_args().folder
    for backend, part in itertools.product(BACKENDS, PARTS):
        path = folder / f"v{FORMAT_VERSION}-{backend}-{part}"
        if path.exists():
            print(f"{path} is there already: a released format never changes", file=sys.stderr)
            continue
        make(path, backend, part)
        with labelstore.open(path) as store:
            record = {"format_version": store.catalogue.format_version, "answers": answers(store)}
        path.with_name(f"{path.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        print(f"{path}: {size:,} bytes, {len(record['answers'])} answers")


if __name__ == "__main__":
    main()
