"""Labels of any crops of any images: what a sampler of one's own asks for, batch by batch (`LabelSet.batch`).

Labels stay sparse. Chunks are decoded once into flat records, which a bounded cache keeps; a batch is grouped by
chunk. `labelstore.store.unpacked` has the same records of all crops in a file.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.reading_threads import REMOTE_THREADS, for_each
from labelstore.codecs import LabelMap, SparseLabels, id_dtype, relative_temperature, widen
from labelstore.errors import UsageError
from labelstore.store.chosen_images import crop_numbers
from labelstore.store.flat_records import RecordForm, Records, opaque
from labelstore.store.region_mask import Region, calibrated, without_discarded

if TYPE_CHECKING:
    from labelstore.store.label_set import Images, LabelSet
    from labelstore.store.region_mask import Mask

Crops: TypeAlias = Sequence[Sequence[int]] | NDArray[np.integer]
SparseOrDense: TypeAlias = SparseLabels | NDArray[np.float32]

CACHE_BYTES = 512 << 20
"""Decoded chunks that a label set keeps in memory for its next batches: about 17 million crops at K = 5."""


@dataclass(frozen=True, kw_only=True)
class LabelBatch:
    """Labels, boxes and flips of m crops of each of B images.

    Label sets that keep every class (`full`, `logits`) list all C of them, with one row of ids for all crops.
    """

    class_ids: NDArray[Any]
    """(B, m, K) class indices, unsigned; the dtype's largest value where a crop has no label."""
    probs: NDArray[np.float32]
    """(B, m, K) probabilities of these classes; NaN where a crop has no label, or a mask discards it."""
    rest: NDArray[np.float32]
    """(B, m) probability of each class that is not listed."""
    boxes: NDArray[np.uint16]
    """(B, m, 4) top, left, height, width in pixels of the original image; 65,535 for images left out as bad."""
    flips: NDArray[np.bool_]
    """(B, m) whether the crop is mirrored left to right."""
    regions: NDArray[np.uint8]
    """(B, m) region codes of the mask (`Region`); IMPORTANT everywhere without one."""

    @property
    def labels(self) -> SparseLabels:
        """The labels alone, as `LabelSet.sparse` gives them."""
        return SparseLabels(class_ids=self.class_ids, probs=self.probs, rest=self.rest)


class RecordSource(Protocol):
    """Where the records of one label set are taken from: its chunks, or a file."""

    labels: LabelSet
    form: RecordForm

    def records(self, rows: NDArray[np.int64], crops: NDArray[np.int64]) -> Records:
        """Records (B, m) of crops (B, m) of image rows (B,)."""

    def image_records(self, rows: NDArray[np.int64], shards: NDArray[np.int64]) -> Records:
        """Records (P,) of what is kept per image, of image rows (P,) in crop shards (P,)."""

    def regions(
        self, mask: Mask, rows: NDArray[np.int64], crops: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Region codes (B, m) of crops (B, m) of image rows (B,)."""


def asked_crops(
    labels: LabelSet, images: Images, crops: Crops | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Image rows (B,) and crop numbers (B, m) of what a caller names; UsageError for what is not there."""
    try:
        rows = labels.store.image_rows(images)
        wanted = crop_numbers(crops, len(rows), labels.num_crops)
    except UsageError as error:
        raise _grown(labels, error) from None
    # only a store that was read again since knows more rows
    more = labels.store.num_rows > labels.layout.num_rows
    if more and rows.size and rows.max() >= labels.layout.num_rows:
        beyond = UsageError(
            f"image row {rows.max()}: these labels have rows 0-{labels.layout.num_rows - 1}"
        )
        raise _grown(labels, beyond)
    return rows, wanted


def _grown(labels: LabelSet, error: UsageError) -> UsageError:
    """The error, saying so where the store has more crops or images than when the label set was opened."""
    now = labels.store.plan(labels.plan.name)
    _, num_rows = labels.store.catalogue.images.counts()
    if now.num_crops <= labels.num_crops and num_rows <= labels.layout.num_rows:
        return error
    return UsageError(
        f"{error}; the store has grown since: open it again, and unpack its labels again if they were"
    )


def batch_of(
    source: RecordSource,
    images: Images,
    crops: Crops | None,
    temperature: float | None,
    mask: Mask | None,
) -> LabelBatch:
    """Labels of chosen crops of one label set; see `LabelSet.batch`."""
    labels = source.labels
    if mask is not None:
        mask.check_matches(labels)
    rows, wanted = asked_crops(labels, images, crops)
    found, boxes, flips = recovered_at(source, rows, wanted, temperature)
    regions = regions_at(source, mask, rows, wanted)
    if mask is not None:
        hard = bool((regions == Region.HARD).any())
        truth = (labels.true_output if hard else labels.ground_truth)[rows][:, None]
        found = without_discarded(
            calibrated(found, mask, regions, truth, labels.num_classes), regions
        )
    return as_batch(found, boxes, flips, regions, labels.num_classes)


def as_batch(
    labels: SparseOrDense,
    boxes: NDArray[np.uint16],
    flips: NDArray[np.bool_],
    regions: NDArray[np.uint8],
    num_classes: int,
) -> LabelBatch:
    """Labels (B, m, ...), sparse or dense, with the rest of a batch."""
    if not isinstance(labels, SparseLabels):
        every = np.arange(num_classes, dtype=id_dtype(num_classes))
        labels = SparseLabels(
            class_ids=np.broadcast_to(every, labels.shape),
            probs=labels,
            rest=labels[..., 0] * np.float32(0),  # NaN where there is no label
        )
    return LabelBatch(
        class_ids=labels.class_ids,
        probs=labels.probs,
        rest=labels.rest,
        boxes=boxes,
        flips=flips,
        regions=regions,
    )


def recovered_at(
    source: RecordSource,
    rows: NDArray[np.int64],
    crops: NDArray[np.int64],
    temperature: float | None,
) -> tuple[SparseOrDense, NDArray[np.uint16], NDArray[np.bool_]]:
    """Labels (B, m, ...) before calibration, boxes (B, m, 4) and flips (B, m) of crops (B, m) of image rows (B,)."""
    labels, codec = source.labels, source.form.codec
    relative = relative_temperature(labels.codec, temperature, labels.temperature)
    records = source.records(rows, crops)
    boxes, flips = np.ascontiguousarray(records["box"]), records["flip"] == 1
    if not source.form.per_image:
        arrays = _arrays(records, source.form)
    elif labels.codec.takes == "map":
        images = source.image_records(rows, np.zeros_like(rows))
        arrays = {name: images[name] for name in source.form.image_dtype.names or ()}
        arrays["box"] = labels.relative_boxes(boxes, rows)
    else:
        # an image's crops may be of several crop shards: each with what its own keeps of the image
        shards = crops // labels.plan.crops_per_shard
        images = source.image_records(np.repeat(rows, crops.shape[1]), shards.reshape(-1))
        arrays = _arrays(records.reshape(-1, 1), source.form)
        arrays |= {name: images[name] for name in source.form.image_dtype.names or ()}
    if codec.kept(labels.num_classes) is None:
        return codec.recover(arrays, labels.num_classes, relative), boxes, flips
    recovered = codec.decode(arrays, labels.num_classes, relative)
    if isinstance(codec, LabelMap):
        recovered = widen(recovered, labels.listed or codec.k, labels.num_classes)
    kept = recovered.class_ids.shape[-1]
    sparse = SparseLabels(
        class_ids=recovered.class_ids.reshape(*crops.shape, kept),
        probs=recovered.probs.reshape(*crops.shape, kept),
        rest=recovered.rest.reshape(crops.shape),
    )
    return sparse, boxes, flips


def regions_at(
    source: RecordSource,
    mask: Mask | None,
    rows: NDArray[np.int64],
    crops: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Region codes (B, m); IMPORTANT everywhere without a mask."""
    if mask is None:
        return np.full(crops.shape, Region.IMPORTANT, np.uint8)
    return source.regions(mask, rows, crops)


def _arrays(records: Records, form: RecordForm) -> dict[str, NDArray[Any]]:
    return {field.name: np.ascontiguousarray(records[field.name]) for field in form.per_crop}


class ChunkSource:
    """Records of a label set from its chunks; those that were decoded last stay in memory."""

    def __init__(self, labels: LabelSet, cache_bytes: int = CACHE_BYTES) -> None:
        self.labels, self.form = labels, RecordForm.of(labels)
        self._cache = ChunkCache(cache_bytes)

    def records(self, rows: NDArray[np.int64], crops: NDArray[np.int64]) -> Records:
        """As `RecordSource` says."""
        columns = self.labels.layout.num_columns

        def load(cell: int) -> NDArray[Any]:
            block, column = divmod(cell, columns)
            return self.form.crop_records(self.labels, block, range(column, column + 1))

        return self._taken("crops", rows, crops, load, self.form.dtype)

    def image_records(self, rows: NDArray[np.int64], shards: NDArray[np.int64]) -> Records:
        """As `RecordSource` says."""
        layout = self.labels.group.layout
        block, offset = np.divmod(rows, layout.images_per_shard)
        found: Records = self._gather(
            "images",
            block,
            offset * layout.num_crop_shards + shards,
            lambda cell: self.form.image_records(self.labels, cell),
            self.form.image_dtype,
        )
        return found

    def regions(
        self, mask: Mask, rows: NDArray[np.int64], crops: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """As `RecordSource` says."""
        columns = self.labels.layout.num_columns

        def load(cell: int) -> NDArray[Any]:
            block, column = divmod(cell, columns)
            return mask.regions(block, range(column, column + 1))

        return self._taken(mask.identity, rows, crops, load, np.dtype(np.uint8))

    def _taken(
        self,
        kind: str,
        rows: NDArray[np.int64],
        crops: NDArray[np.int64],
        load: Callable[[int], NDArray[Any]],
        dtype: np.dtype[Any],
    ) -> NDArray[Any]:
        """Values (B, m) of crops (B, m) of image rows (B,); a cell is a chunk column of an image block."""
        per, layout = self.labels.plan.crops_per_chunk, self.labels.layout
        block, offset = np.divmod(rows, layout.images_per_shard)
        column, inside = np.divmod(crops, per)
        cells = (block[:, None] * layout.num_columns + column).reshape(-1)
        places = (offset[:, None] * per + inside).reshape(-1)
        return self._gather(kind, cells, places, load, dtype).reshape(crops.shape)

    def _gather(
        self,
        kind: str,
        cells: NDArray[np.int64],
        places: NDArray[np.int64],
        load: Callable[[int], NDArray[Any]],
        dtype: np.dtype[Any],
    ) -> NDArray[Any]:
        """Values (P,) at `places` of the flat arrays that `load` gives of `cells`, each cell looked up once."""
        out = np.empty(len(cells), dtype)
        raw = opaque(out)
        order = np.argsort(cells, kind="stable")
        starts = np.flatnonzero(np.diff(cells[order], prepend=-1))
        places_of = {int(cells[here[0]]): here for here in np.split(order, starts)[1:]}

        def take(cell: int) -> None:
            here = places_of[cell]
            held = self._cache.get((kind, cell), lambda: opaque(load(cell)).reshape(-1))
            raw[here] = held.take(places[here], mode="clip")

        # chunks of a disk wait for a core, those of object storage for their requests
        threads = REMOTE_THREADS if self.labels.store.is_remote else 1
        for_each(take, places_of, threads=min(threads, len(places_of)))
        return out


class ChunkCache:
    """Arrays by key, the least recently used ones forgotten beyond so many bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._held: OrderedDict[Any, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int], load: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of a key, made by `load` unless it is held."""
        with self._lock:
            kept = self._held.get(key)
            if kept is not None:
                self._held.move_to_end(key)
                return kept
        made = load()
        with self._lock:
            if key not in self._held:
                self._held[key] = made
                self._bytes += made.nbytes
            while self._bytes > self._limit and len(self._held) > 1:
                _, gone = self._held.popitem(last=False)
                self._bytes -= gone.nbytes
        return made
