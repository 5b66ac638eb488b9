"""FKD Table 2 for one store: what its labels would take with every codec, predicted from a sample of themselves.

A prediction re-encodes one shard of the richest label set with the codec and compresses it as a store would; what
that label set does not hold (all C probabilities from a top-K, K = 10 from K = 5) is counted in bytes before
compression, and said to be so, and so are floats of more digits than it keeps. Not in a prediction: shard indexes
(20 bytes per chunk), metadata, catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from labelstore.analysis.disk import Storage, storage
from labelstore.analysis.fkd_files import FKD_TABLE_2, Kind, fkd_kinds
from labelstore.codecs import (
    Logits,
    ProductCodes,
    choose_class_ids,
    codec_from_options,
    codec_from_record,
    identity_of,
    is_map,
    keeps_max_probability,
    top_k,
)
from labelstore.codecs.base import LabelCodec, TopK
from labelstore.codecs.codec_traits import field_bytes
from labelstore.codecs.topk import first_classes
from labelstore.errors import UsageError

if TYPE_CHECKING:
    from labelstore.store import LabelSet, Store

DTYPES = ("float32", "float16", "uint8")
DENSE_VALUES = 1 << 23
"""Probabilities of dense labels that are encoded at once: 32 MB as float32."""
IMAGE_TAIL = (3, 100)
"""K and the classes of the image's tail, in rows below FKD's: nearer to the teacher than MS-20, smaller than MS-5."""
MAP_CELLS = 15 * 15
"""Cells of ReLabel's maps."""
RELABEL_PAPER = {"relabel-full": "~1 TB", "relabel-5": "10 GB"}
"""FKD Table 2, "Real Cons. on Disk" of ReLabel's maps; it counts 4 bytes per number."""
Basis = Literal["sample", "raw"]


@dataclass(frozen=True, kw_only=True)
class CodecStorage:
    """One row: a codec with its dtype, at the scale asked for."""

    kind: str
    """"full", "hard", "ms-5"; "logits" and "pq-20" of outputs; "relabel-full" and "relabel-5" for ReLabel's maps."""
    dtype: str
    """Empty where no probabilities are kept."""
    basis: Basis
    """"sample": encoded and compressed from this store's labels; "raw": bytes before compression."""
    labels_per_crop: float
    """Predicted bytes; of a map its share of the M crops of an image."""
    crops_per_crop: float | None
    """Boxes and flips, measured; 0 with seeded crops, and for maps. None where none are committed yet."""
    predicted_bytes: int
    """Labels, boxes and flips at the scale."""
    label_set: str | None
    """The label set of just this kind in the store."""
    measured_per_crop: float | None
    """Bytes of its labels on disk."""
    measured_bytes: int | None
    """Labels, boxes and flips at the scale, with these bytes."""
    fkd_table_bytes: int
    """The paper's own calculation for N, M and C: 4 bytes per number."""
    fkd_disk_bytes: int | None
    """Files as FKD's generator writes them; None for ReLabel's maps."""
    paper: str | None
    """What Table 2 prints for 1.2 M images x 200 crops."""


@dataclass(frozen=True, kw_only=True)
class CodecTable:
    """FKD Table 2 of a store."""

    source: str
    """The label set that the samples are of."""
    sampled_crops: int
    scale: tuple[int, int]
    """(N, M)."""
    rows: tuple[CodecStorage, ...]

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "scale": list(self.scale)}


def codec_table(
    store: Store, label_set: str | None = None, *, scale: str | tuple[int, int] | None = None
) -> CodecTable:
    """Every codec and dtype, predicted from `label_set` (the richest one if none is named).

    `scale` ("1281167x200" or (N, M)) is as in `storage`. UsageError where no label set has labels of crops yet.
    """
    measured = storage(store, scale=scale)
    source = _richest(store) if label_set is None else store.label_set(label_set)
    if is_map(source.row.codec) or not source.blocks:
        raise UsageError(
            f"label set {source.name} has no labels of crops to take a sample of: choose another one with `label_set`"
        )
    sample = _Sample(source)
    is_outputs = source.codec.takes == "outputs"
    return CodecTable(
        source=source.name,
        sampled_crops=sample.num_crops,
        scale=measured.scale,
        rows=(
            *(_output_rows(sample, measured) if is_outputs else ()),
            # what is no class has no softmax, and none of FKD's forms
            *(_table_2(sample, measured) if source.outputs.are_classes or not is_outputs else ()),
        ),
    )


def _table_2(sample: _Sample, measured: Storage) -> Iterator[CodecStorage]:
    """FKD's rows, with ReLabel's maps above and the image's tail below."""
    source = sample.source
    yield from _maps(source, measured)
    for kind, k in FKD_TABLE_2:
        if k is None or k <= source.num_classes:
            for dtype in _dtypes(kind):
                yield _row(kind, codec_from_options(kind, k, dtype or None), sample, measured)
    k, tail_classes = IMAGE_TAIL
    if k < source.num_classes:
        for dtype in DTYPES:
            yield _row("ms", codec_from_options("ms", k, dtype, tail_classes), sample, measured)


def _output_rows(sample: _Sample, measured: Storage) -> Iterator[CodecStorage]:
    """Outputs before softmax as they are, in 8 bits and as codes, beside all D of them as FKD counts them."""
    for dtype in DTYPES:
        yield _row("full", Logits(dtype=dtype), sample, measured)
    if find_spec("faiss") is not None:
        yield _row("full", ProductCodes(), sample, measured)


class _Sample:
    """One crop shard of one image block, or as many of its images as fit."""

    def __init__(self, source: LabelSet) -> None:
        self.source = source
        layout = source.layout
        block = source.blocks[0]
        self.images = len(layout.rows(block))
        self.outputs: NDArray[np.float32] | None = None
        if source.codec.kept(source.num_classes) is None:
            width = layout.crops_per_shard * source.num_classes
            self.images = min(self.images, max(1, DENSE_VALUES // width))
            columns = range(layout.columns_per_shard)
            parts = [source.dense(block, range(c, c + 1))[: self.images] for c in columns]
            self.labels: TopK | NDArray[np.float32] = np.concatenate(parts, axis=1)
            missing = np.isnan(self.labels[..., 0])
            if source.codec.takes == "outputs":
                parts = [source.raw_outputs(block, range(c, c + 1)) for c in columns]
                self.outputs = np.concatenate([p[: self.images] for p in parts], axis=1)
        else:
            found = source.sparse(block, range(layout.columns_per_shard))
            unlisted = max(source.num_classes - found.probs.shape[-1], 0)
            self.labels = TopK(
                class_ids=found.class_ids, probs=found.probs, tail=found.rest * np.float32(unlisted)
            )
            missing = np.isnan(found.probs[..., 0])
        self.num_crops = int(missing.size)

    def bytes_per_crop(self, codec: LabelCodec) -> tuple[float, Basis]:
        """Return the bytes that the codec's arrays take per crop, and how they were found."""
        num_classes = self.source.num_classes
        labels = self.outputs if codec.takes == "outputs" else self._kept(codec)
        if isinstance(codec, ProductCodes) and self.outputs is not None:
            codec = codec.trained(self.outputs.reshape(-1, num_classes))
        if labels is None:
            fields = codec.fields(num_classes)
            shared = self.source.layout.crops_per_shard
            raw = sum(
                np.dtype(field.dtype).itemsize
                * prod(field.shape)
                / (shared if field.per == "image" else 1)
                for field in fields
            )
            return raw, "raw"
        if isinstance(labels, TopK):
            codec = choose_class_ids(codec, labels, num_classes)
        arrays = codec.encode(labels, num_classes)
        per_chunk = self.source.plan.crops_per_chunk
        total = 0
        basis: Basis = "sample"
        for field in codec.fields(num_classes):
            array = arrays[field.name]
            if np.dtype(field.dtype).kind == "f" and self._is_rounded(field.dtype):
                # the zeros that rounding left behind would compress to nothing
                total, basis = total + array.nbytes, "raw"
            else:
                total += field_bytes(field, array, crops_per_chunk=per_chunk)
        return total / self.num_crops, basis

    def _is_rounded(self, dtype: str) -> bool:
        """Whether the source keeps probabilities in a smaller dtype than this float."""
        held = str(self.source.row.codec.get("dtype", "uint8"))
        return DTYPES.index(held) > DTYPES.index(np.dtype(dtype).name)

    def _kept(self, codec: LabelCodec) -> TopK | NDArray[np.float32] | None:
        """Return the sample's labels as the codec wants them; None where the source did not keep it."""
        num_classes = self.source.num_classes
        asked = codec.kept(num_classes)
        loses = keeps_max_probability(codec, num_classes) and not keeps_max_probability(
            self.source.codec, num_classes
        )
        if loses:
            return None
        if not isinstance(self.labels, TopK):
            return self.labels if asked is None else top_k(self.labels, asked)
        if asked is None or asked > self.labels.probs.shape[-1]:
            return None
        return first_classes(self.labels, asked)


def _richest(store: Store) -> LabelSet:
    """The label set of crops with labels that keeps most: all classes before many, float32 before float16."""
    best: tuple[tuple[bool, bool, int, int, int], LabelSet] | None = None
    for row in store.catalogue.label_sets.all():
        if is_map(row.codec) or not row.is_settled:
            continue
        labels = store.label_set(row.name)
        codec = codec_from_record(row.codec)
        if not labels.blocks:
            continue
        kept = codec.kept(row.num_classes)
        dtype = str(row.codec.get("dtype", "uint8"))
        richness = (
            codec.takes == "probabilities",
            keeps_max_probability(codec, row.num_classes),
            row.num_classes if kept is None else kept,
            len(labels.blocks),
            -DTYPES.index(dtype),
        )
        if best is None or richness > best[0]:
            best = richness, labels
    if best is None:
        others = [name for name in store.label_sets if store.label_set(name).blocks]
        if others:
            raise UsageError(
                f"{store.path}: {', '.join(others)} holds no labels of crops, and no other form can be computed "
                "from it: `labelstore stats` without storage has its size, and one that `labelstore.generate()` makes "
                "can be taken as a sample"
            )
        raise UsageError(
            f"{store.path} has no labels of crops yet to take a sample of: run `labelstore.generate` first, as it was "
            "begun"
        )
    return best[1]


def _dtypes(kind: Kind) -> tuple[str, ...]:
    if kind == "hard":
        return ("",)
    return tuple(dtype for dtype in DTYPES if kind != "full" or dtype != "uint8")


def _row(kind: Kind, codec: LabelCodec, sample: _Sample, measured: Storage) -> CodecStorage:
    """A codec beside what FKD stores of the same kind."""
    source, record = sample.source, codec.to_record()
    labels, basis = sample.bytes_per_crop(codec)
    held = _held(source, codec, measured)
    crops = measured.scale[0] * measured.scale[1]
    (fkd,) = fkd_kinds(
        *measured.scale, num_classes=source.num_classes, kinds=((kind, record.get("k")),)
    )
    boxes = _boxes(source, measured)
    return CodecStorage(
        kind=_title(fkd.title, record),
        dtype=str(record.get("dtype", "")),
        basis=basis,
        labels_per_crop=labels,
        crops_per_crop=boxes,
        predicted_bytes=round((labels + (boxes or 0)) * crops),
        label_set=None if held is None else held[0],
        measured_per_crop=None if held is None else held[1],
        measured_bytes=None if held is None else round((held[1] + (boxes or 0)) * crops),
        fkd_table_bytes=fkd.table_bytes,
        fkd_disk_bytes=fkd.disk_bytes,
        paper=fkd.paper,
    )


def _title(of_fkd: str, record: Mapping[str, Any]) -> str:
    """Name a row as in FKD's table, or by the codec's own name."""
    if record["name"] == "pq":
        return f"pq-{record['values_per_code']}"
    if record["name"] == "logits":
        return "logits"
    return f"{of_fkd}-tail{record['tail_classes']}" if record.get("tail_classes") else of_fkd


def _maps(source: LabelSet, measured: Storage) -> Iterator[CodecStorage]:
    """ReLabel's maps: all C logits or the top 5 of every cell, per image and whatever M is."""
    num_images, num_crops = measured.scale
    own_maps = [
        (row.name, entry.labels_per_crop * source.num_crops)
        for row in source.store.catalogue.label_sets.all()
        for entry in measured.label_sets
        if is_map(row.codec)
        and row.codec.get("k") == 5
        and entry.label_set == row.name
        and entry.labels_per_crop
    ]
    numbers = {"relabel-full": source.num_classes, "relabel-5": 2 * min(5, source.num_classes)}
    for kind, per_cell in numbers.items():
        # float16 logits, 16-bit ids beside those that are kept
        raw = MAP_CELLS * 2 * per_cell
        held = own_maps[0] if own_maps and kind == "relabel-5" else None
        yield CodecStorage(
            kind=kind,
            dtype="float16",
            basis="raw",
            labels_per_crop=raw / num_crops,
            crops_per_crop=0.0,
            predicted_bytes=raw * num_images,
            label_set=None if held is None else held[0],
            measured_per_crop=None if held is None else held[1] / num_crops,
            measured_bytes=None if held is None else round(held[1] * num_images),
            fkd_table_bytes=4 * MAP_CELLS * per_cell * num_images,
            fkd_disk_bytes=None,
            paper=RELABEL_PAPER[kind] if source.num_classes == 1000 else None,
        )


def _held(source: LabelSet, codec: LabelCodec, measured: Storage) -> tuple[str, float] | None:
    """(name, bytes of labels per crop) of a label set on the same plan with this codec."""
    wanted = identity_of(codec.to_record())
    for row in source.store.catalogue.label_sets.all():
        record = identity_of(row.codec)
        if row.plan != source.plan.name or record != wanted:
            continue
        for entry in measured.label_sets:
            if entry.label_set == row.name and entry.labels_per_crop is not None:
                return row.name, entry.labels_per_crop
    return None


def _boxes(source: LabelSet, measured: Storage) -> float | None:
    for entry in measured.label_sets:
        if entry.label_set == source.name:
            return entry.boxes_per_crop
    return None
