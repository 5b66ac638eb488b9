"""Makes the small stores of this format that every later version must open: `python -m tests.data.make_stores`.

Four folders per format and backend, tests/data/v1-zarr-ms and so on, frozen, and beside each a file NAME.npz with
everything that a reader gets from it. They are made once per format, by the version that releases it, and
committed; `tests/stress/test_old_formats.py` opens all that are there.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sqlite3
import sys
import uuid
from contextlib import closing
from pathlib import Path

import numpy as np

import labelstore
from labelstore.care.freezing import freeze
from labelstore.catalogue import FORMAT_VERSION
from labelstore.catalogue.records import LabelSetRow
from labelstore.codecs import (
    Full,
    Hard,
    LabelCodec,
    LabelMap,
    Logits,
    MapTopK,
    MarginalRenorm,
    MarginalSmoothing,
    Smoothing,
)
from labelstore.commit.staging import BlockArrays, write_block
from labelstore.store import Store
from labelstore.testing.filled_store import add_label_set, fill_blocks, filled_store

DATA = Path(__file__).parent
BACKENDS = ("zarr", "hdf5")
NUM_IMAGES, NUM_CROPS, NUM_CLASSES, LEFT_OUT = 6, 4, 12, 4
PARTS: dict[str, dict[str, LabelCodec]] = {
    "ms": {"ms16": MarginalSmoothing(k=3)},
    "eight": {"ms8": MarginalSmoothing(k=3, dtype="uint8", class_ids="table"), "hard": Hard()},
    "full": {
        "full16": Full(),
        "mr16": MarginalRenorm(k=3),
        "smoothing32": Smoothing(dtype="float32"),
    },
    "outputs": {
        "logits16": Logits(),
        "map16": LabelMap(k=3, height=4, width=3, image_size=64),
    },
}
"""Several stores per backend, so that each stays small: label set -> codec."""
WITH_MASK, SEEDED = "ms", ("full", "outputs")
"""The part that has a mask, and those whose boxes are computed."""
WARM = ("ms", "smoothing", "full", "logits", "labelmap")
"""Codecs whose labels are also read at another temperature."""
PAGE_BYTES = 1024
"""Of the catalogue: two dozen tables of a few rows take a quarter of what they would in SQLite's usual pages."""


def labels() -> np.ndarray:
    """(N, M, C) float32, from flat to sharp; equal on every machine."""
    rng = np.random.Generator(np.random.Philox(1))
    logits = rng.standard_normal((NUM_IMAGES, NUM_CROPS, NUM_CLASSES))
    logits *= np.linspace(0.5, 9, NUM_IMAGES)[:, None, None]
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return (probs / probs.sum(-1, keepdims=True)).astype(np.float32)


def given(codec: LabelCodec) -> np.ndarray:
    """(N, M, C) what a codec of crops takes: probabilities, or outputs before softmax."""
    return np.log(labels()) if codec.takes == "outputs" else labels()


def fill_maps(store: Store, codec: LabelMap, *, name: str) -> None:
    """A label set with label maps: random logits, none for the image that was left out."""
    first = store.label_set_row()
    row = LabelSetRow(
        name=name,
        plan=first.plan,
        teacher=first.teacher,
        num_classes=NUM_CLASSES,
        codec=codec.to_record(),
        uuid=uuid.uuid4().hex,
    )
    store.catalogue.label_sets.add(row)
    store.write_metadata()
    shape = (NUM_IMAGES, codec.height, codec.width, NUM_CLASSES)
    logits = np.random.Generator(np.random.Philox(2)).normal(0, 3, shape).astype(np.float32)
    ids = np.argsort(-logits, axis=-1)[..., : codec.k]
    logits = np.take_along_axis(logits, ids, -1)
    logits[LEFT_OUT] = np.nan
    group = f"labels/{name}"
    layout = store.group_specs(group)[1]
    for block in range(layout.num_blocks):
        lease = store.catalogue.leases.acquire(group, [block], "make_stores", 60.0, 1)
        assert lease is not None
        at = slice(layout.rows(block).start, layout.rows(block).stop)
        maps = MapTopK(class_ids=ids[at], logits=logits[at])
        arrays = codec.encode(maps, NUM_CLASSES)
        shard = BlockArrays(group=group, crop_shard=0, arrays=arrays)
        write_block(
            store,
            lease,
            [shard],
            num_images=len(layout.rows(block)) - (LEFT_OUT in layout.rows(block)),
        )
        store.catalogue.leases.release(lease)
    store.refresh()


def make(path: Path, backend: str, part: str) -> None:
    """One frozen store of some codecs, with an image that was left out."""
    building = path.with_name(f".{path.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    (first, codec), *others = PARTS[part].items()
    store = filled_store(
        building,
        given(codec),
        codec,
        name=first,
        images_per_shard=4,
        crops_per_shard=4,
        backend=backend,
        stored_crops=part not in SEEDED,
        bad={LEFT_OUT},
    )
    with store:
        for name, other in others:
            if isinstance(other, LabelMap):
                fill_maps(store, other, name=name)
                continue
            add_label_set(store, other, NUM_CLASSES, name=name)
            fill_blocks(store, given(other), name=name, bad={LEFT_OUT})
        if part == WITH_MASK:
            labelstore.calibrate(store.label_set(first), name="ferkd")
        with closing(sqlite3.connect(building / "catalogue.db")) as catalogue:
            catalogue.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            catalogue.execute("VACUUM")
        freeze(store, path)
    shutil.rmtree(building)


def answers(store: Store) -> dict[str, np.ndarray]:
    """Everything that a reader gets from a store, by name."""
    rows = store.image_columns
    found = {
        "format_version": np.array(store.catalogue.format_version),
        "images/key": rows["key"].astype(str),
        "images/class": rows["class_id"],
        "images/size": np.stack([rows["height"], rows["width"]], 1),
        "images/bad": store.bad,
    }
    for name in store.label_sets:
        held = store.label_set(name)
        for block in held.blocks:
            boxes, flips = held.crops(block)
            found[f"{name}/{block}/labels"] = held.dense(block)
            found[f"{name}/{block}/boxes"] = boxes
            found[f"{name}/{block}/flips"] = flips
            if held.codec.name in WARM:
                found[f"{name}/{block}/warm"] = held.dense(block, temperature=2.0)
    for name in store.masks:
        mask = store.mask(name)
        for block in mask.blocks:
            found[f"{name}/{block}/regions"] = mask.regions(block)
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
            np.savez_compressed(f"{path}.npz", **answers(store))
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        print(f"{path}: {size:,} bytes")


if __name__ == "__main__":
    main()
