"""Audit: the teacher labels stored crops again, and its probabilities are compared with the stored ones.

`verify` says that bytes are what was written; only the teacher can say that they were the right labels of these
crops. Fresh probabilities go through the label set's own codec on the classes that are stored, so that what is left
is a difference of labels and not of rounding, and a tie at rank K is none.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelstore.care.map_audit import DrawnCrops, StoredMaps, decoded_image, fresh_maps
from labelstore.care.relabelling import Relabeller
from labelstore.catalogue.records import LabelSetRow
from labelstore.codecs import MarginalSmoothing, codec_from_record, is_map
from labelstore.codecs.base import LabelCodec, TopK
from labelstore.codecs.codec_traits import tolerance_of
from labelstore.codecs.topk import first_classes
from labelstore.commit.lease_keeper import Progress
from labelstore.cropping.crop_augmentation import Operations, planned_augmentation
from labelstore.cropping.device_decoding import crops_on_device
from labelstore.cropping.replay import replay
from labelstore.errors import NotGenerated, UsageError, check_seed
from labelstore.images import ImageSource, open_images
from labelstore.labelling.generation_options import GenerationOptions
from labelstore.labelling.image_check import check_images
from labelstore.labelling.label_facts import recorded_images
from labelstore.labelling.mixed_crops import MixedCrops, Mixes, mixed_crops
from labelstore.store import LabelSet, Store
from labelstore.teachers.labeller import Autocast
from labelstore.teachers.teacher import Teacher, load_recorded_teacher

CELLS = 64
"""Chunks that the sample is drawn from: each costs the decoding of a chunk, whatever is taken of it."""


@dataclass(frozen=True, kw_only=True)
class AuditedCrop:
    """A crop whose stored label is not the teacher's."""

    image: int
    key: str
    crop: int
    difference: float
    stored_top1: int
    """Class with the largest stored probability."""
    fresh_top1: int
    """Class that the teacher finds now."""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """How far stored labels are from the teacher's; a difference is the largest over a crop's probabilities."""

    label_set: str
    num_crops: int
    num_images: int
    largest: float
    mean: float
    rounding: float
    """Largest difference that the codec's own dtype makes to the fresh labels."""
    tolerance: float
    beyond: tuple[AuditedCrop, ...]
    """Crops that differ by more than the tolerance, worst first."""
    seconds: float

    @property
    def is_sound(self) -> bool:
        """True where every crop is within the tolerance."""
        return not self.beyond


def audit(
    store: Store,
    *,
    label_set: str | None = None,
    images: str | Path | ImageSource | None = None,
    teacher: str | Teacher | None = None,
    sample: int = 1000,
    tolerance: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str | None = None,
    autocast: Autocast | None = None,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> AuditReport:
    """Run the teacher again on `sample` stored crops, drawn at random from up to 64 chunks.

    Images and teacher are as recorded where they are not given; boxes and flips are the stored ones. ConflictError
    for other weights, RejectedInput for an image that is missing, has changed or is left by a stored box,
    NotGenerated where nothing is committed. Of label maps, labels of drawn crops are pooled from a fresh map of
    the image.
    """
    started = time.monotonic()
    row = store.label_set_row(label_set)
    _check(row, sample, tolerance)
    check_seed(seed)
    labels = store.label_set(row.name)
    cells = _cells(labels, sample, seed)
    if not cells:
        raise NotGenerated(f"label set {row.name} has no committed labels yet: nothing to audit")
    if images is None:
        images = recorded_images(store, row)
    folder = open_images(images)
    check_images(store, folder, lambda message: None)
    recorded_teacher = store.teacher(row.teacher)
    if not isinstance(teacher, Teacher):
        teacher = load_recorded_teacher(recorded_teacher, teacher)
    options = GenerationOptions(
        temperature=row.temperature,
        batch_size=batch_size,
        device=device,
        autocast=autocast,
        workers=workers,
    )
    asker = Relabeller.of(store, row, folder, teacher, options)
    codec = codec_from_record(row.codec)
    if isinstance(codec, MarginalSmoothing):
        codec = dataclasses.replace(codec, tail_classes=0)  # see `_Stored.of`
    exact = codec
    if getattr(codec, "dtype", "float32") != "float32":
        exact = dataclasses.replace(codec, dtype="float32")  # type: ignore[type-var]
    if tolerance is None:
        ran = {"autocast": autocast} if autocast else {}
        tolerance = tolerance_of(codec, {**row.facts, **ran})
    audited: list[AuditedCrop] = []
    rounding, done, total = 0.0, 0, sum(len(cell.rows) for cell in cells)
    progress(0, total)
    for cell in cells:
        fresh = _fresh(asker, labels, cell)
        stored = (StoredMaps if is_map(row.codec) else _Stored).of(labels, cell)
        again = stored.through(codec, fresh)
        rounding = max(rounding, float(np.abs(again - stored.through(exact, fresh)).max()))
        audited += _differences(store, cell, stored, again, fresh)
        done += len(cell.rows)
        progress(done, total)
    differences = np.array([crop.difference for crop in audited])
    worst = sorted(audited, key=lambda crop: -crop.difference)
    return AuditReport(
        label_set=row.name,
        num_crops=len(audited),
        num_images=len({crop.image for crop in audited}),
        largest=float(differences.max()),
        mean=float(differences.mean()),
        rounding=rounding,
        tolerance=tolerance,
        beyond=tuple(crop for crop in worst if not crop.difference <= tolerance),
        seconds=time.monotonic() - started,
    )


def _check(row: LabelSetRow, sample: int, tolerance: float | None) -> None:
    if sample < 1:
        raise UsageError(f"`sample={sample}`: audit at least one crop")
    if tolerance is not None and not 0 <= tolerance <= 1:
        raise UsageError(f"`tolerance={tolerance}`: a difference of probabilities is 0 to 1")


def _cells(labels: LabelSet, sample: int, seed: int) -> list[DrawnCrops]:
    """Random crops of images that have labels, about as many from each of up to `CELLS` chunks."""
    rng = np.random.default_rng(seed)
    layout = labels.layout
    places = [(b, c) for b in labels.blocks for c in range(layout.num_columns)]
    if len(places) > CELLS:
        chosen = rng.choice(len(places), CELLS, replace=False)
        places = [places[i] for i in np.sort(chosen)]
    cells = []
    for number, (block, column) in enumerate(places):
        wanted = sample * (number + 1) // len(places) - sample * number // len(places)
        rows = np.array([i for i in labels.block_rows(block) if labels.present[i]], np.int64)
        count = min(wanted, len(rows) * layout.crops_per_chunk)
        if not count:
            continue
        drawn = np.sort(rng.choice(len(rows) * layout.crops_per_chunk, count, replace=False))
        cells.append(
            DrawnCrops(
                block=block,
                column=column,
                rows=rows[drawn // layout.crops_per_chunk],
                offsets=drawn % layout.crops_per_chunk,
                first_crop=column * layout.crops_per_chunk,
            )
        )
    return cells


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """Labels as they are stored: K probabilities and the rest's, or all C."""

    class_ids: NDArray[Any] | None
    """(s, K); None where all classes are stored."""
    probs: NDArray[np.float32]
    """(s, K + 1), the last the probability of each class that is not listed; or (s, C)."""
    num_classes: int

    @classmethod
    def of(cls, labels: LabelSet, cell: DrawnCrops) -> _Stored:
        at = (cell.rows - labels.block_rows(cell.block).start, cell.offsets)
        if labels.codec.kept(labels.num_classes) is None:
            dense = labels.dense(cell.block, cell.columns)[at]
            return cls(class_ids=None, probs=dense, num_classes=labels.num_classes)
        sparse, codec = labels.sparse(cell.block, cell.columns), labels.codec
        listed = sparse.probs.shape[-1]
        kept = first_classes(
            TopK(
                class_ids=sparse.class_ids[at],
                probs=sparse.probs[at],
                tail=sparse.rest[at] * np.float32(labels.num_classes - listed),
            ),
            codec.k if isinstance(codec, MarginalSmoothing) else listed,
        )
        # how a tail is spread over an image's table is no label of the crop: its mass is
        rest = kept.tail / np.float32(max(labels.num_classes - kept.probs.shape[-1], 1))
        probs = np.concatenate([kept.probs, rest[:, None]], axis=1)
        return cls(class_ids=kept.class_ids, probs=probs, num_classes=labels.num_classes)

    def through(self, codec: LabelCodec, fresh: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fresh outputs or probabilities (s, C) as the codec gives them back, in the form of `probs`."""
        if self.class_ids is None:
            dense = codec.recover(codec.encode(fresh[:, None], self.num_classes), self.num_classes)
            return dense[:, 0]
        ids = np.minimum(self.class_ids, self.num_classes - 1).astype(np.int64)
        chosen = np.take_along_axis(fresh, ids, axis=1)
        order = np.argsort(-chosen, axis=1, kind="stable")
        chosen = np.take_along_axis(chosen, order, axis=1)
        tail = np.maximum(fresh.sum(1, dtype=np.float64) - chosen.sum(1, dtype=np.float64), 0)
        top = TopK(
            class_ids=np.take_along_axis(self.class_ids, order, axis=1)[:, None],
            probs=chosen[:, None],
            tail=tail.astype(np.float32)[:, None],
        )
        back = codec.decode(codec.encode(top, self.num_classes), self.num_classes)
        probs = np.empty_like(self.probs)
        np.put_along_axis(probs[:, :-1], order, back.probs[:, 0], axis=1)
        probs[:, -1] = back.rest[:, 0]
        return probs

    @property
    def top1(self) -> NDArray[np.int64]:
        """(s,) class with the largest probability."""
        if self.class_ids is None:
            first: NDArray[np.int64] = self.probs.argmax(1)
            return first
        best = self.probs[:, :-1].argmax(1)
        return np.take_along_axis(self.class_ids, best[:, None], axis=1)[:, 0].astype(np.int64)

    def fresh_top1(self, fresh: NDArray[np.float32]) -> NDArray[np.int64]:
        """(s,) class that the teacher finds now."""
        first: NDArray[np.int64] = fresh.argmax(1)
        return first

    def overlooked(self, fresh: NDArray[np.float32]) -> NDArray[np.float32]:
        """(s,) how much more probable a class that is not stored is than one that is; 0 for the K largest."""
        if self.class_ids is None:
            return np.zeros(len(fresh), np.float32)
        ids = np.minimum(self.class_ids, self.num_classes - 1).astype(np.int64)
        least = np.take_along_axis(fresh, ids, axis=1).min(1)
        others = fresh.copy()
        np.put_along_axis(others, ids, 0.0, axis=1)
        gap: NDArray[np.float32] = np.maximum(others.max(1) - least, 0)
        return gap


def _differences(
    store: Store,
    cell: DrawnCrops,
    stored: _Stored | StoredMaps,
    again: NDArray[np.float32],
    fresh: NDArray[np.float32],
) -> Iterator[AuditedCrop]:
    difference = np.maximum(np.abs(stored.probs - again).max(1), stored.overlooked(fresh))
    # a stored NaN is no label at all
    difference = np.where(np.isfinite(difference), difference, np.inf)
    keys = store.image_columns["key"]
    for image, offset, gap, was, now in zip(
        cell.rows.tolist(),
        cell.offsets.tolist(),
        difference.tolist(),
        stored.top1.tolist(),
        stored.fresh_top1(fresh).tolist(),
        strict=True,
    ):
        yield AuditedCrop(
            image=image,
            key=str(keys[image]),
            crop=cell.first_crop + offset,
            difference=gap,
            stored_top1=was,
            fresh_top1=now,
        )


def _fresh(asker: Relabeller, labels: LabelSet, cell: DrawnCrops) -> NDArray[np.float32]:
    """(s, C) what the teacher says now: probabilities, or outputs where the codec takes them; of maps `fresh_maps`."""
    if is_map(labels.row.codec):
        return fresh_maps(asker, cell.rows)
    boxes, flips = labels.crops(cell.block, cell.columns)
    at = (cell.rows - labels.block_rows(cell.block).start, cell.offsets)
    boxes, flips, crops = boxes[at], flips[at], cell.first_crop + cell.offsets
    per_image = [np.flatnonzero(cell.rows == image) for image in np.unique(cell.rows)]
    size = asker.labelling.teacher.row.input_size
    pixels = torch.empty(
        (len(cell.rows), 3, size, size), dtype=torch.uint8, device=asker.labelling.crop_device
    )
    mixed = mixed_crops(asker.store, asker.store.plan(asker.row.plan), asker.labelling.images)
    with ThreadPoolExecutor(asker.labelling.threads, thread_name_prefix="audit") as pool:
        jobs = [
            pool.submit(
                _fill, asker, int(cell.rows[these[0]]), these, crops, boxes, flips, pixels, mixed
            )
            for these in per_image
        ]
        for job in jobs:
            job.result()
    parts = []
    for start in range(0, len(pixels), asker.labelling.options.batch_size):
        outputs = asker.labelling.labeller.logits(
            pixels[start : start + asker.labelling.options.batch_size]
        )
        if labels.codec.takes == "probabilities":
            outputs = torch.softmax(outputs / labels.row.temperature, dim=1)
        parts.append(outputs.cpu().numpy())
    return np.concatenate(parts)


def _fill(
    asker: Relabeller,
    image: int,
    these: Sequence[int] | NDArray[np.int64],
    crops: NDArray[np.int64],
    boxes: NDArray[np.uint16],
    flips: NDArray[np.bool_],
    pixels: torch.Tensor,
    mixed: MixedCrops | None,
) -> None:
    """Pixels of the drawn crops of one image."""
    key = str(asker.store.image_columns["key"][image])
    decoded = decoded_image(asker, image)
    interpolation = asker.labelling.teacher.row.interpolation
    augmentation = planned_augmentation(asker.store.plan(asker.row.plan).parameters)
    mixes = {} if mixed is None else _mixes(asker, mixed, image)
    for at in these:
        if asker.labelling.crop_device is None:
            size = pixels.shape[-1]
            todo: Operations = ()
            if augmentation is not None:
                (todo,) = augmentation.operations(key, [int(crops[at])])
            replay(decoded, boxes[at], bool(flips[at]), size, interpolation, pixels[at], todo)
            if mixed is not None:
                one = {name: values[crops[at]][None] for name, values in mixes.items()}
                mixed.mix_in(pixels[at][None], crops[at : at + 1], one, interpolation)
        else:
            here = slice(int(at), int(at) + 1)
            on_device = decoded.to(asker.labelling.crop_device)
            crops_on_device(on_device, boxes[here], flips[here], interpolation, pixels[here])


def _mixes(asker: Relabeller, mixed: MixedCrops, image: int) -> Mixes:
    """Read what all crops of an image were mixed with."""
    labels = asker.store.label_set(asker.row.name)
    boxes, flips = labels.boxes([image])[0], labels.flips([image])[0]
    return mixed.of(image, 0, boxes, flips)
