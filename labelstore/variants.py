"""Variants: a cheaper label set from a richer one of the same teacher, without running the teacher.

`full` gives everything else, `ms` a smaller K, `mr`, `smoothing` and `hard`. What the codec of the source
did not keep cannot be made up: `hard` -> `ms`, `mr` -> `ms` and a larger K are refused. Written like any
label set: through leases and the ledger, by any number of processes, resumed where it was stopped.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow, Lease
from labelstore.codecs import (
    CODECS,
    codec_from_options,
    codec_from_record,
    keeps_max_probability,
    top_k,
)
from labelstore.codecs.base import LabelCodec, SparseLabels, TopK
from labelstore.errors import ConflictError, UsageError, told_apart
from labelstore.parallel import BlockMap, MapBlocks, fill_in_parts
from labelstore.store import BlockArrays, LabelSet, StagedBlock, stage_block
from labelstore.store.block_work import fill_blocks
from labelstore.store.leases import Progress
from labelstore.store.settling import settled_codec
from labelstore.store.slabs import slabs
from labelstore.store.threads import map_in_threads
from labelstore.store.writing import DERIVED

if TYPE_CHECKING:
    from labelstore.store import Store

SMALLEST = 2.0**-26
"""What a probability of zero counts as in the source, below float16's half step: the teacher's was not zero."""
BINS_PER_OCTAVE = 64
"""Resolution of the percentile: 1.1 %."""
_OCTAVES = (-60, 8)
"""Binary logarithms that the percentile tells apart, in nats."""


@dataclass(frozen=True, kw_only=True)
class VariantCost:
    """Kullback-Leibler divergence of the variant's labels from the source's, in nats, over all crops of both.

    KL(variant || source) = sum_c q_c log(q_c / p_c), which is finite for every codec: for `mr` it is minus
    the logarithm of the mass that the kept classes had, for `hard` of the largest probability.
    """

    mean: float
    p99: float
    """99th percentile, to 1.1 %."""
    worst: float
    num_crops: int
    """Crops that were compared."""


def derive(
    source: LabelSet,
    codec: LabelCodec,
    *,
    name: str | None = None,
    map_blocks: MapBlocks = map_in_threads,
    progress: Progress | None = None,
) -> LabelSet:
    """A label set with `codec` made from `source`, under `name` or one made of source and codec.

    Covers the committed image blocks of the source; called again it adds what is missing, and finds
    everything done when nothing is. UsageError where the source lacks what `codec` keeps, ConflictError
    where `name` is another label set. Nothing is written then.
    """
    store = source.store
    check_derivable(source, codec)
    name = name or variant_name(source, codec)
    identity = _register(source, codec, name)
    store.finish_metadata()
    told = progress or (lambda done, total: None)
    if isinstance(map_blocks, BlockMap):
        total = sum(len(source.block_rows(block)) for block in source.blocks) * source.num_crops
        work = partial(_derive_part, source, name, identity)
        fill_in_parts(map_blocks, work, source.blocks, total, told)
    else:
        _derive_blocks(source, name, identity, source.blocks, told)
    store.refresh(images=False)
    return store.label_set(name)


def _derive_blocks(
    source: LabelSet, name: str, identity: str, blocks: Sequence[int], progress: Progress
) -> None:
    job = _Job(source, name, identity)
    group = f"labels/{name}"
    fill_blocks(source.store, group, blocks, source.layout, job.derive, progress, identity=identity)


def _derive_part(source: LabelSet, name: str, identity: str, blocks: Sequence[int]) -> int:
    """In a worker: commit some image blocks; how many crops they have."""
    _derive_blocks(source, name, identity, blocks, lambda done, total: None)
    return sum(len(source.block_rows(block)) for block in blocks) * source.num_crops


def check_derivable(source: LabelSet, codec: LabelCodec) -> None:
    """UsageError where `source` does not hold what labels with `codec` need."""
    num_classes = source.num_classes
    if codec.takes != "probabilities":
        raise UsageError(
            f"{codec.name} labels cannot be derived: only the teacher has its outputs before softmax; "
            f"make them with `labelstore add-teacher --compression {codec.name}`"
        )
    asked = codec.kept(num_classes)
    held = source.codec.kept(num_classes)
    available = num_classes if held is None else held
    said = f"label set {source.name} ({codec_words(source.codec)})"
    if (num_classes if asked is None else asked) > available:
        wants = f"all {num_classes} probabilities" if asked is None else f"{asked} classes"
        raise UsageError(
            f"{said} keeps {available} of {num_classes} classes and {codec_words(codec)} needs {wants}: "
            f"derive K={available} or less, or label again with the teacher"
        )
    if keeps_max_probability(codec, num_classes) and not keeps_max_probability(
        source.codec, num_classes
    ):
        raise UsageError(
            f"{said} does not keep the teacher's probabilities, which {codec_words(codec)} needs: "
            "derive from a full, ms or smoothing label set"
        )
    if _without_form(codec.to_record()) == _without_form(source.codec.to_record()):
        raise UsageError(f"{said} is just that already: choose another codec, K or dtype")


def codec_for(
    source: LabelSet, compression: str | None, k: int | None, dtype: str | None
) -> LabelCodec:
    """The codec that `--compression`, `--k` and `--dtype` ask for; what is not said is as in the source."""
    held = source.codec.to_record()
    name = compression or source.codec.name
    parameters = {field.name for field in fields(CODECS[name])} if name in CODECS else set()
    if k is None and "k" in parameters:
        k = held.get("k")
    if dtype is None and "dtype" in parameters:
        dtype = held.get("dtype")
    return codec_from_options(name, k, dtype)


def variant_name(source: LabelSet, codec: LabelCodec) -> str:
    """A name that says what it is: resnet50-mr3-uint8."""
    record = codec.to_record()
    parts = [source.name, f"{record['name']}{record.get('k', '')}"]
    return "-".join([*parts, *([record["dtype"]] if "dtype" in record else [])])


def codec_words(codec: LabelCodec) -> str:
    """A codec in words: `ms K=5 float16`."""
    record = codec.to_record()
    kept = f" K={record['k']}" if "k" in record else ""
    return f"{record['name']}{kept} {record.get('dtype', '')}".rstrip()


def check_name(source: LabelSet, codec: LabelCodec, name: str) -> LabelSetRow | None:
    """The label set of that name if it is this variant, begun or done; None if there is none.

    ConflictError if it is something else.
    """
    store = source.store
    for row in store.catalogue.label_sets.all():
        if row.name != name:
            continue
        wanted = {
            "crop plan": (row.plan, source.plan.name),
            "teacher": (row.teacher, source.row.teacher),
            "temperature": (row.temperature, source.row.temperature),
            "compression": (
                _without_form(row.codec),
                _without_form(codec.to_record()),
            ),
        }
        for what, (old, new) in wanted.items():
            if old != new:
                has, asked = told_apart(old, new)
                raise ConflictError(
                    f"label set {name} is in {store.path} with {what} {has}, not {asked}: "
                    "choose another --name"
                )
        made_by = {shard.device for shard in store.catalogue.ledger.shards(f"labels/{name}")}
        if made_by - {derived_from(source.name)}:
            raise ConflictError(
                f"label set {name} is in {store.path} and was not derived from {source.name}: "
                "choose another --name"
            )
        return row
    return None


def derived_from(source: str) -> str:
    """What the ledger says in the place of a device."""
    return f"{DERIVED}{source}"


def variant_cost(
    source: LabelSet, variant: LabelSet, *, map_blocks: MapBlocks = map_in_threads
) -> VariantCost:
    """What the variant lost, over all crops that both hold: read back from disk, not what was meant to be written."""
    blocks = sorted(set(source.blocks) & set(variant.blocks))
    low, high = _OCTAVES
    counts = np.zeros((high - low) * BINS_PER_OCTAVE + 1, np.int64)
    total, worst = 0.0, 0.0
    for part, counted, largest in map_blocks(partial(_block_cost, source, variant), blocks):
        total += part
        counts += counted
        worst = max(worst, largest)
    num_crops = int(counts.sum())
    if not num_crops:
        return VariantCost(mean=float("nan"), p99=float("nan"), worst=float("nan"), num_crops=0)
    at = int(np.searchsorted(np.cumsum(counts), 0.99 * num_crops))
    # the first bin is "none"; of the others the upper edge, so that no crop is flattered
    p99 = 0.0 if at == 0 else min(2.0 ** (low + at / BINS_PER_OCTAVE), worst)
    return VariantCost(mean=total / num_crops, p99=p99, worst=worst, num_crops=num_crops)


def divergence(
    source: SparseLabels | NDArray[np.float32],
    variant: SparseLabels | NDArray[np.float32],
    num_classes: int,
) -> NDArray[np.float64]:
    """KL(variant || source) in nats of labels (n, m), NaN where one is missing.

    A dense variant needs a dense source. Both keep classes in the same order, the source at least as many.
    """
    if not isinstance(variant, SparseLabels):
        assert not isinstance(source, SparseLabels)
        q = variant.astype(np.float64)
        return _at_least_zero(_terms(q, np.log(np.maximum(source, SMALLEST))).sum(axis=-1))
    k = variant.probs.shape[-1]
    if isinstance(source, SparseLabels):
        listed = np.log(np.maximum(source.probs.astype(np.float64), SMALLEST))
        rest = np.log(np.maximum(source.rest.astype(np.float64), SMALLEST))
        unlisted = num_classes - source.probs.shape[-1]
        others = listed[..., k:].sum(axis=-1) + (unlisted * rest if unlisted else 0.0)
        listed = listed[..., :k]
    else:
        log_p = np.log(np.maximum(source, np.float32(SMALLEST)))
        missing = np.isnan(variant.probs[..., :1])
        at = np.where(missing, 0, variant.class_ids).astype(np.intp)
        listed = np.take_along_axis(log_p, at, axis=-1).astype(np.float64)
        others = log_p.sum(axis=-1, dtype=np.float64) - listed.sum(axis=-1)
    kl = _terms(variant.probs.astype(np.float64), listed).sum(axis=-1)
    if num_classes > k:
        r = variant.rest.astype(np.float64)
        log_r = np.log(r, where=r > 0, out=np.zeros_like(r))
        kl += np.where(r > 0, r * ((num_classes - k) * log_r - others), r)
    return _at_least_zero(kl)


def _terms(q: NDArray[np.float64], log_p: NDArray[Any]) -> NDArray[np.float64]:
    log_q = np.log(q, where=q > 0, out=np.zeros_like(q))
    terms: NDArray[np.float64] = q * (log_q - log_p)
    return terms


def _at_least_zero(kl: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(kl, 0.0)  # rounding of float32 labels; NaN stays


def _block_cost(
    source: LabelSet, variant: LabelSet, block: int
) -> tuple[float, NDArray[np.int64], float]:
    """(sum, histogram, largest) of one image block."""
    low, high = _OCTAVES
    counts = np.zeros((high - low) * BINS_PER_OCTAVE + 1, np.int64)
    total, worst = 0.0, 0.0
    for columns in slabs(source):
        kl = divergence(
            _recovered(source, block, columns),
            _recovered(variant, block, columns),
            source.num_classes,
        )
        kl = kl[~np.isnan(kl)]
        if not kl.size:
            continue
        total += float(kl.sum())
        worst = max(worst, float(kl.max()))
        octaves = np.log2(np.maximum(kl, 2.0**low)) - low
        bins = np.ceil(octaves * BINS_PER_OCTAVE).astype(np.int64)
        counts += np.bincount(np.clip(bins, 0, len(counts) - 1), minlength=len(counts))
    return total, counts, worst


def _recovered(
    labels: LabelSet, block: int, columns: range | None
) -> SparseLabels | NDArray[np.float32]:
    if labels.codec.kept(labels.num_classes) is None:
        return labels.dense(block, columns)
    return labels.sparse(block, columns)


def _register(source: LabelSet, codec: LabelCodec, name: str) -> str:
    """The uuid of the variant, begun now or earlier."""
    held = check_name(source, codec, name)
    if held is not None:
        return held.uuid
    record = codec.to_record()
    if "class_ids" in record:
        record["class_ids"] = None  # decided on the first shard
    row = LabelSetRow(
        name=name,
        plan=source.plan.name,
        teacher=source.row.teacher,
        num_classes=source.num_classes,
        codec=record,
        uuid=uuid.uuid4().hex,
        temperature=source.row.temperature,
    )
    return source.store.catalogue.label_sets.add(row).uuid


def _without_form(record: Any) -> dict[str, Any]:  # noqa: ANN401 - a JSON object
    return {key: value for key, value in record.items() if key != "class_ids"}


class _Job:
    """One process's share of a variant."""

    def __init__(self, source: LabelSet, name: str, identity: str) -> None:
        self.source, self.name, self.uuid = source, name, identity
        self.store: Store = source.store

    def derive(self, lease: Lease, missing: Sequence[int]) -> StagedBlock:
        """Recover, encode and stage the missing crop shards of one leased block."""
        started = time.monotonic()
        num_classes = self.source.num_classes
        codec: LabelCodec | None = None
        labelled = np.zeros(len(self.source.block_rows(lease.block)), bool)
        shards = []
        for crop_shard in missing:
            row = self.store.label_set_row(self.name)
            labels = self._labels(lease.block, crop_shard, codec_from_record(_plain(row.codec)))
            first = labels.probs[..., 0] if isinstance(labels, TopK) else labels[..., 0]
            labelled |= ~np.isnan(first).all(axis=1)
            codec = codec or self._codec(row, labels, empty=not labelled.any())
            arrays = codec.encode(labels, num_classes)
            shards.append(
                BlockArrays(group=f"labels/{self.name}", crop_shard=crop_shard, arrays=arrays)
            )
        return stage_block(
            self.store,
            lease,
            shards,
            num_images=int(labelled.sum()),
            seconds=time.monotonic() - started,
            device=derived_from(self.source.name),
        )

    def _labels(self, block: int, crop_shard: int, codec: LabelCodec) -> TopK | NDArray[np.float32]:
        """What `codec` keeps of one crop shard: TopK (n, m, K) or dense (n, m, C), NaN where missing."""
        source, layout = self.source, self.source.layout
        kept = codec.kept(source.num_classes)
        first = crop_shard * layout.columns_per_shard
        whole = range(first, first + layout.columns_per_shard)
        if kept is None:
            return source.dense(block, whole)
        if source.codec.kept(source.num_classes) is not None:
            return _fewer(source.sparse(block, whole), kept, source.num_classes)
        # dense labels a few chunk columns at a time: the whole shard need not fit in memory three times
        (some, *_) = slabs(source)
        step = len(whole) if some is None else min(len(some), len(whole))
        parts = [
            top_k(source.dense(block, range(at, min(at + step, whole.stop))), kept)
            for at in range(whole.start, whole.stop, step)
        ]
        return TopK(
            class_ids=np.concatenate([part.class_ids for part in parts], axis=1),
            probs=np.concatenate([part.probs for part in parts], axis=1),
            tail=np.concatenate([part.tail for part in parts], axis=1),
        )

    def _codec(
        self, row: LabelSetRow, labels: TopK | NDArray[np.float32], *, empty: bool
    ) -> LabelCodec:
        first = labels if isinstance(labels, TopK) and not empty else None
        return settled_codec(self.store, row, lambda: first, uuid=self.uuid)


def _plain(record: Any) -> dict[str, Any]:  # noqa: ANN401 - a JSON object
    return {**record, "class_ids": "plain"} if "class_ids" in record else dict(record)


def _fewer(labels: SparseLabels, kept: int, num_classes: int) -> TopK:
    """The first `kept` classes of recovered labels (n, m, K); the others join the tail."""
    unlisted = num_classes - labels.probs.shape[-1]
    tail = labels.probs[..., kept:].sum(axis=-1) + labels.rest * np.float32(unlisted)
    return TopK(
        class_ids=np.ascontiguousarray(labels.class_ids[..., :kept]),
        probs=np.ascontiguousarray(labels.probs[..., :kept]),
        tail=tail.astype(np.float32),
    )
