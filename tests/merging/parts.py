"""Stores of parts of one data set, with the labels that a store of all of it would have."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np

from labelstore import PlanOptions
from labelstore.codecs import LabelCodec, LabelMap, MapTopK, MarginalSmoothing
from labelstore.commit.staging import BlockArrays, write_block
from labelstore.images import ImageFolder
from labelstore.store import Store, create
from labelstore.testing.filled_store import add_label_set, fill_blocks

N, M, C = 14, 4, 6
H, W = 2, 3
CLASSES = tuple(f"class{c}" for c in range(C))
TRUTH = np.sort(np.random.default_rng(3).integers(0, C, N))
KEYS = tuple(f"{CLASSES[c]}/{i:04d}.jpg" for i, c in enumerate(TRUTH))
ALL = range(N)
EVEN, ODD = range(0, N, 2), range(1, N, 2)


def soft_labels(seed: int = 5) -> np.ndarray:
    """(N, M, C) of all images."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(C, 0.4), (N, M)).astype(np.float32)


def folder(images, root: Path = Path("images")) -> ImageFolder:
    chosen = np.array(list(images))
    return ImageFolder(
        root=root,
        classes=CLASSES,
        keys=tuple(KEYS[i] for i in chosen),
        class_ids=TRUTH[chosen].astype(np.int64),
        sizes=1000 + chosen,
        mtimes_ns=chosen * 10,
    )


def part(
    path: Path,
    images,
    codecs: dict[str, LabelCodec] | None = None,
    *,
    labels: np.ndarray | None = None,
    bad=(),
    blocks=None,
    images_per_shard: int = 4,
    **options,
) -> Store:
    """A store of some images, labelled with every codec; `bad` ones are left out, and only some blocks are labelled."""
    chosen = list(images)
    # making a store's metadata takes a third of the time with this backend
    backend = options.pop("backend", "hdf5")
    usual = {"num_crops": M, "crops_per_shard": 2, "seed": 9, "images_per_shard": images_per_shard}
    store = create(
        path,
        images=folder(chosen),
        plan=PlanOptions(**usual | options),
        backend=backend,
    )
    held = (soft_labels() if labels is None else labels)[chosen]
    missing = {chosen.index(image) for image in bad if image in chosen}
    for name, codec in (codecs or {"teacher": MarginalSmoothing(k=2)}).items():
        add_label_set(store, codec, C, name=name, teacher="teacher")
        given = np.log(held) if codec.takes == "outputs" else held
        fill_blocks(store, given, name=name, bad=missing, blocks=blocks)
    return store


def fill_maps(store: Store, images, *, bad=(), seed: int = 6) -> None:
    """A label set `map` with label maps of these images."""
    codec = LabelMap(k=2, height=H, width=W, image_size=32)
    first = store.label_set_row(store.label_sets[0])
    row = replace(first, name="map", codec=codec.to_record(), uuid=uuid.uuid4().hex)
    store.catalogue.label_sets.add(row)
    store.write_metadata()
    chosen = list(images)
    logits = np.random.default_rng(seed).normal(0, 3, (N, H, W, C)).astype(np.float32)[chosen]
    ids = np.argsort(-logits, axis=-1)[..., : codec.k]
    logits = np.take_along_axis(logits, ids, -1)
    logits[[image in bad for image in chosen]] = np.nan
    layout = store.group_specs("labels/map")[1]
    for block in range(layout.num_blocks):
        at = slice(layout.rows(block).start, layout.rows(block).stop)
        arrays = codec.encode(MapTopK(class_ids=ids[at], logits=logits[at]), C)
        lease = store.catalogue.leases.acquire("labels/map", [block], "parts", 60.0)
        shard = BlockArrays(group="labels/map", crop_shard=0, arrays=arrays)
        write_block(store, lease, [shard], num_images=len(ids[at]))
        store.catalogue.leases.release(lease)
    store.refresh()


def by_key(store: Store, label_set: str) -> dict[str, tuple[bytes, ...]]:
    """Every image's labels, boxes, flips as bytes, for the images that have them."""
    held = store.label_set(label_set)
    found = {}
    for block in held.blocks:
        dense, (boxes, flips) = held.dense(block), held.crops(block)
        for at, row in enumerate(held.block_rows(block)):
            if not store.free[row]:
                key = store.image_columns["key"][row]
                found[key] = (dense[at].tobytes(), boxes[at].tobytes(), flips[at].tobytes())
    return found


def regions_by_key(store: Store, name: str) -> dict[str, bytes]:
    mask = store.mask(name)
    height = store.plan().images_per_shard
    return {
        store.image_columns["key"][block * height + at]: codes.tobytes()
        for block in mask.blocks
        for at, codes in enumerate(mask.regions(block))
        if not store.free[block * height + at]
    }


def digests(path: Path) -> dict[str, str]:
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
