"""Stores filled from the label model through the real write path: catalogue, leases, encode, fsync, ledger.

Two stores of the same labels. `stored.labels` keeps boxes and flips and has the label sets float16 and uint8;
`seeded.labels` has seeded crops and the label set uint8. Interrupted, the build goes on where the ledger says.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import labelstore
from benchmarks import label_model
from labelstore import PlanOptions
from labelstore.catalogue.records import LabelSetRow, Lease, TeacherRow
from labelstore.codecs import MarginalSmoothing, TopK, choose_class_ids, codec_from_record
from labelstore.commit.lease_keeper import LeaseKeeper
from labelstore.commit.staging import BlockArrays, ImageFacts, write_block
from labelstore.images import ImageFolder
from labelstore.store import Store
from labelstore.store.layout import Layout, choose_layout
from labelstore.store.opening import DEFAULT_BYTES_PER_CROP, exists

NUM_CLASSES, K = 1000, 5
STORED, SEEDED = "stored.labels", "seeded.labels"
TIMES = "write_times.json"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One label set to be written."""

    store: str
    label_set: str
    dtype: str
    with_boxes: bool
    """The first label set of a plan that stores its crops writes them too."""


TARGETS = (
    Target(store=STORED, label_set="float16", dtype="float16", with_boxes=True),
    Target(store=STORED, label_set="uint8", dtype="uint8", with_boxes=False),
    Target(store=SEEDED, label_set="uint8", dtype="uint8", with_boxes=False),
)


@dataclass(kw_only=True)
class WriteTimes:
    """Seconds spent, over all sittings; kept beside the stores."""

    crops: int = 0
    """Crops of the label model, each written to every target."""
    model_seconds: float = 0.0
    """Making labels up: no part of writing."""
    write_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Per target "STORE/LABEL SET": lease, encode, fsync, commit."""

    @classmethod
    def read(cls, folder: Path) -> WriteTimes:
        path = folder / TIMES
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, folder: Path) -> None:
        (folder / TIMES).write_text(json.dumps(dataclasses.asdict(self)))

    def crops_per_s(self, store: str, label_set: str) -> float:
        return self.crops / self.write_seconds[f"{store}/{label_set}"]


def image_folder(num_images: int, block: int) -> ImageFolder:
    """Images named, sized and dated like ImageNet's; classes are the label model's ground truth, `block` at a time."""
    truth = np.concatenate(
        [
            label_model.labels(first, min(block, num_images - first), 1, k=K).ground_truth
            for first in range(0, num_images, block)
        ]
    )
    rng = np.random.default_rng(1)
    wnids = [f"n{1_440_764 + 13_579 * c:08d}" for c in range(NUM_CLASSES)]
    return ImageFolder(
        root=Path("imagenet/train"),
        classes=tuple(wnids),
        keys=tuple(f"{wnids[c]}/{wnids[c]}_{i}.JPEG" for i, c in enumerate(truth.tolist())),
        class_ids=truth,
        sizes=rng.integers(20_000, 200_000, num_images),
        mtimes_ns=rng.integers(1.3e18, 1.4e18, num_images),
    )


def build(
    folder: Path, num_images: int, num_crops: int, told: Callable[[int, int], None]
) -> WriteTimes:
    """Make both stores in `folder`, or finish them; `told` hears image blocks done and in all."""
    folder.mkdir(parents=True, exist_ok=True)
    stores = {name: opened(folder / name, num_images, num_crops) for name in (STORED, SEEDED)}
    times = WriteTimes.read(folder)
    layout = Layout.of(stores[STORED].plan(), num_images)
    keepers = {
        target: LeaseKeeper(
            stores[target.store].catalogue,
            f"labels/{target.label_set}",
            layout.num_blocks,
            layout.num_crop_shards,
        )
        for target in TARGETS
    }
    leases = {target: keeper.acquire() for target, keeper in keepers.items()}
    while held := [lease.block for lease in leases.values() if lease is not None]:
        block = min(held)
        rows = layout.rows(block)
        told(block, layout.num_blocks)
        begun = time.perf_counter()
        labels = label_model.labels(rows.start, len(rows), num_crops, k=K, num_classes=NUM_CLASSES)
        times.model_seconds += time.perf_counter() - begun
        for target, lease in leases.items():
            if lease is None or lease.block != block:
                continue
            begun = time.perf_counter()
            write_labels(
                stores[target.store],
                target,
                lease,
                layout,
                labels,
                with_boxes=target.with_boxes,
            )
            keepers[target].forget(block)
            leases[target] = keepers[target].acquire()
            name = f"{target.store}/{target.label_set}"
            spent = time.perf_counter() - begun
            times.write_seconds[name] = times.write_seconds.get(name, 0.0) + spent
        times.crops += len(rows) * num_crops
        times.write(folder)
    for keeper in keepers.values():
        keeper.close()
    told(layout.num_blocks, layout.num_blocks)
    for store in stores.values():
        store.close()
    return times


def opened(
    path: Path,
    num_images: int,
    num_crops: int,
    targets: Sequence[Target] = TARGETS,
    images_per_shard: int | None = None,
) -> Store:
    """The store at `path`; made first, with the label sets that are targets there, if there is none."""
    stored = path.name == STORED
    if exists(path):
        store = labelstore.open(path)
        assert (store.num_images, store.num_crops) == (num_images, num_crops), (
            f"{path} is another size"
        )
        return store
    # the layout that a store of this size gets decides how the label model is cut into calls
    probe = choose_layout(
        num_images, num_crops, DEFAULT_BYTES_PER_CROP, images_per_shard=images_per_shard
    )
    store = labelstore.create(
        path,
        images=image_folder(num_images, probe.images_per_shard),
        plan=PlanOptions(
            num_crops=num_crops, stored_crops=stored, images_per_shard=images_per_shard
        ),
    )
    store.catalogue.teachers.add(
        TeacherRow(
            name="label-model",
            source=label_model.NAME,
            architecture="label-model",
            digest="0" * 64,
            num_classes=NUM_CLASSES,
            input_size=224,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            interpolation="bilinear",
            crop_pct=0.875,
        )
    )
    for target in targets:
        if target.store == path.name:
            record = MarginalSmoothing(k=K, dtype=target.dtype).to_record()
            store.catalogue.label_sets.add(
                LabelSetRow(
                    name=target.label_set,
                    plan=store.plan().name,
                    teacher="label-model",
                    num_classes=NUM_CLASSES,
                    codec={**record, "class_ids": None},
                    uuid=uuid.uuid4().hex,
                )
            )
    store.write_metadata()
    return store


def top_k_of(labels: label_model.ModelLabels, crops: slice = slice(None)) -> TopK:
    return TopK(
        class_ids=labels.class_ids[:, crops],
        probs=labels.probs[:, crops],
        tail=labels.tail[:, crops],
    )


def write_labels(
    store: Store,
    target: Target,
    lease: Lease,
    layout: Layout,
    labels: label_model.ModelLabels,
    *,
    with_boxes: bool,
) -> None:
    """Encode and commit one leased image block, with its boxes and flips if wanted."""
    width = layout.crops_per_shard
    cuts = [slice(i * width, (i + 1) * width) for i in range(layout.num_crop_shards)]
    row = store.label_set_row(target.label_set)
    if row.codec["class_ids"] is None:
        plain = codec_from_record({**row.codec, "class_ids": "plain"})
        chosen = choose_class_ids(plain, top_k_of(labels, cuts[0]), NUM_CLASSES)
        store.settle_codec(target.label_set, chosen.to_record())
        row = store.label_set_row(target.label_set)
    codec = codec_from_record(row.codec)
    shards = []
    for number, cut in enumerate(cuts):
        shards.append(
            BlockArrays(
                group=lease.group,
                crop_shard=number,
                arrays=codec.encode(top_k_of(labels, cut), NUM_CLASSES),
            )
        )
        if with_boxes:
            shards.append(
                BlockArrays(
                    group=f"crops/{store.plan().name}",
                    crop_shard=number,
                    arrays={
                        "box": labels.box[:, cut],
                        "flip": labels.flip[:, cut].astype(np.uint8),
                    },
                )
            )
    decoded = []
    if with_boxes or target.store == SEEDED:
        rows = layout.rows(lease.block)
        digests = np.random.default_rng(lease.block).bytes(16 * len(rows))
        decoded = [
            (row, int(width), int(height), digests[16 * i : 16 * i + 16])
            for i, (row, (height, width)) in enumerate(zip(rows, labels.size, strict=True))
        ]
    write_block(
        store,
        lease,
        shards,
        facts=ImageFacts(decoded=decoded),
        num_images=len(labels.size),
        device="label model",
    )
