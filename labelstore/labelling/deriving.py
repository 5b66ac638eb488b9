"""Making a variant: labels of the source are recovered, encoded again and committed block by block."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, at_most, map_in_threads
from labelstore.blocks.crop_slab import slabs
from labelstore.catalogue.records import DERIVED, LabelSetRow
from labelstore.codecs import (
    CODECS,
    MarginalSmoothing,
    ProductCodes,
    codec_from_options,
    codec_from_record,
    identity_of,
    keeps_max_probability,
    top_k,
)
from labelstore.codecs.base import LabelCodec, SparseLabels, TopK, with_class_ids
from labelstore.codecs.product_codes import SAMPLE
from labelstore.codecs.topk import first_classes
from labelstore.commit.block_jobs import BlockSource, LeasedBlock, MadeBlock
from labelstore.commit.label_set_rows import settled_codec
from labelstore.commit.lease_keeper import Progress
from labelstore.commit.staging import BlockArrays
from labelstore.commit.worker import work_through
from labelstore.errors import ConflictError, UsageError, told_apart
from labelstore.store import LabelSet


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
    job = _Deriving(
        store=store,
        group=f"labels/{name}",
        identity=identity,
        layout=source.layout,
        blocks=source.blocks,
        map_blocks=map_blocks,
        labels=source,
        name=name,
    )
    work_through(job, progress=progress or (lambda done, total: None))
    store.refresh(images=False)
    return store.label_set(name)


def _register(source: LabelSet, codec: LabelCodec, name: str) -> str:
    """The uuid of the variant, begun now or earlier."""
    existing = check_name(source, codec, name)
    if existing is not None:
        return existing.uuid
    # how class ids are kept is decided on the first shard
    record = with_class_ids(learnt_from(codec, source).to_record(), None)
    row = LabelSetRow(
        name=name,
        plan=source.plan.name,
        teacher=source.row.teacher,
        num_classes=source.num_classes,
        codec=record,
        uuid=uuid.uuid4().hex,
        temperature=source.row.temperature,
        # what the outputs are is the teacher's, and the same in every form of its labels
        facts={**source.outputs.to_record(), "class_map": source.row.facts.get("class_map")},
    )
    return source.store.catalogue.label_sets.add(row).uuid


@dataclass(kw_only=True)
class _Deriving(BlockSource):
    """The blocks of a variant: recovered labels of the source, encoded by the variant's codec."""

    labels: LabelSet
    name: str

    def arrays(self, leased: LeasedBlock) -> MadeBlock:
        """Recover and encode the missing crop shards of one block."""
        started = time.monotonic()
        codec: LabelCodec | None = None
        labelled = np.zeros(len(leased.rows), bool)
        shards = []
        for crop_shard in leased.missing:
            row = self.store.label_set_row(self.name)
            labels = self._labels(
                leased.block, crop_shard, codec_from_record(with_class_ids(row.codec, "plain"))
            )
            first = labels.probs[..., 0] if isinstance(labels, TopK) else labels[..., 0]
            labelled |= ~np.isnan(first).all(axis=1)
            codec = codec or self._codec(row, labels, empty=not labelled.any())
            arrays = codec.encode(labels, row.num_classes)
            shards.append(BlockArrays(group=self.group, crop_shard=crop_shard, arrays=arrays))
        return MadeBlock(
            leased=leased,
            shards=lambda: shards,
            num_images=int(labelled.sum()),
            seconds=time.monotonic() - started,
            device=derived_from(self.labels.name),
        )

    def _labels(self, block: int, crop_shard: int, codec: LabelCodec) -> TopK | NDArray[np.float32]:
        """Return what `codec` keeps of one crop shard: TopK (n, m, K) or dense (n, m, C), NaN where missing."""
        source, layout = self.labels, self.labels.layout
        kept = codec.kept(source.num_classes)
        first = crop_shard * layout.columns_per_shard
        whole = range(first, first + layout.columns_per_shard)
        if codec.takes == "outputs":
            return source.raw_outputs(block, whole)
        if kept is None:
            return source.dense(block, whole)
        held = source.codec.kept(source.num_classes)
        if held is not None:
            return _fewer(source.sparse(block, whole), min(kept, held), source.num_classes)
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
        return settled_codec(self.store, row, lambda: first, uuid=self.identity or row.uuid)


def _fewer(labels: SparseLabels, kept: int, num_classes: int) -> TopK:
    """The first `kept` classes of recovered labels (n, m, K); the others join the tail."""
    unlisted = num_classes - labels.probs.shape[-1]
    whole = TopK(
        class_ids=labels.class_ids, probs=labels.probs, tail=labels.rest * np.float32(unlisted)
    )
    return first_classes(whole, kept)


def check_derivable(source: LabelSet, codec: LabelCodec) -> None:
    """UsageError where `source` does not hold what labels with `codec` need."""
    num_classes = source.num_classes
    from_outputs = source.codec.takes == "outputs"
    if codec.takes == "map" or (codec.takes == "outputs" and not from_outputs):
        raise UsageError(
            f"{codec.name} labels cannot be derived: only the teacher has its outputs before softmax; "
            f"make them with `labelstore.generate(store, compression={codec.name!r})`"
        )
    said = f"label set {source.name} ({codec_words(source.codec)})"
    if codec.takes == "probabilities" and source.outputs.kind == "embedding":
        raise UsageError(
            f"{said} is an embedding, of which no softmax is taken: derive logits or pq from it"
        )
    asked = fewest_classes(codec, num_classes)
    kept = source.codec.kept(num_classes)
    available = num_classes if kept is None else kept
    if (num_classes if asked is None else asked) > available:
        wants = f"all {num_classes} probabilities" if asked is None else f"{asked} classes"
        raise UsageError(
            f"{said} keeps {available} of {num_classes} classes and {codec_words(codec)} needs {wants}: "
            f"derive K={available} or less, or label again with the teacher"
        )
    needs = codec.takes == "probabilities" and keeps_max_probability(codec, num_classes)
    if needs and not keeps_max_probability(source.codec, num_classes):
        raise UsageError(
            f"{said} does not keep the teacher's probabilities, which {codec_words(codec)} needs: "
            "derive from a full, ms or smoothing label set"
        )
    if identity_of(codec.to_record()) == identity_of(source.codec.to_record()):
        raise UsageError(f"{said} is just that already: choose another codec, K or dtype")


def fewest_classes(codec: LabelCodec, num_classes: int) -> int | None:
    """How many classes of each label `codec` needs; None for all of them. An image's tail takes what more there is."""
    if isinstance(codec, MarginalSmoothing):
        return min(codec.k, codec.kept(num_classes))
    return codec.kept(num_classes)


def codec_for(
    source: LabelSet,
    compression: str | None,
    k: int | None,
    dtype: str | None,
    tail_classes: int | None = None,
    values_per_code: int | None = None,
) -> LabelCodec:
    """The codec that these parameters ask for; what is not said is as in the source."""
    record = source.codec.to_record()
    name = compression or source.codec.name
    parameters = {field.name for field in fields(CODECS[name])} if name in CODECS else set()
    if k is None and "k" in parameters:
        k = record.get("k")
    if dtype is None and "dtype" in parameters:
        dtype = record.get("dtype")
    if tail_classes is None and "tail_classes" in parameters:
        tail_classes = record.get("tail_classes")
    if values_per_code is None and "values_per_code" in parameters:
        values_per_code = record.get("values_per_code")
    return codec_from_options(name, k, dtype, tail_classes, values_per_code)


def variant_name(source: LabelSet, codec: LabelCodec) -> str:
    """A name that says what it is: resnet50-mr3-uint8."""
    record = codec.to_record()
    tail = f"tail{record['tail_classes']}" if "tail_classes" in record else ""
    parts = [
        source.name,
        f"{record['name']}{record.get('k', '')}{tail}{record.get('values_per_code', '')}",
    ]
    return "-".join([*parts, *([record["dtype"]] if "dtype" in record else [])])


def codec_words(codec: LabelCodec) -> str:
    """A codec in words: `ms K=5 float16`."""
    record = codec.to_record()
    kept = f" K={record['k']}" if "k" in record else ""
    tail = f" tail_classes={record['tail_classes']}" if "tail_classes" in record else ""
    width = f" values_per_code={record['values_per_code']}" if "values_per_code" in record else ""
    return f"{record['name']}{kept}{tail}{width} {record.get('dtype', '')}".rstrip()


def check_name(source: LabelSet, codec: LabelCodec, name: str) -> LabelSetRow | None:
    """The label set of that name if it is this variant, begun or done; None if there is none.

    ConflictError if it is something else.
    """
    store = source.store
    row = store.find_label_set(name)
    if row is None:
        return None
    wanted = {
        "crop plan": (row.plan, source.plan.name),
        "teacher": (row.teacher, source.row.teacher),
        "temperature": (row.temperature, source.row.temperature),
        "compression": (
            identity_of(row.codec),
            identity_of(codec.to_record()),
        ),
    }
    for what, (old, new) in wanted.items():
        if old != new:
            has, asked = told_apart(old, new)
            raise ConflictError(
                f"label set {name} is in {store.path} with {what} {has}, not {asked}: "
                "choose another `name`"
            )
    made_by = {shard.device for shard in store.catalogue.ledger.shards(f"labels/{name}")}
    if made_by - {derived_from(source.name)}:
        raise ConflictError(
            f"label set {name} is in {store.path} and was not derived from {source.name}: "
            "choose another `name`"
        )
    return row


def derived_from(source: str) -> str:
    """The ledger's device column for derived labels."""
    return f"{DERIVED}{source}"


BLOCKS = 64
"""Image blocks of a label set that a sample is of, at most."""


def learns(codec: LabelCodec) -> bool:
    """Whether a codec has to see outputs before it can encode any."""
    return isinstance(codec, ProductCodes) and not codec.is_trained


def learnt_from(codec: LabelCodec, source: LabelSet) -> LabelCodec:
    """The codec with what it learns from a label set of outputs; itself where it learns nothing."""
    if not isinstance(codec, ProductCodes) or codec.is_trained:
        return codec
    blocks = at_most(source.blocks, BLOCKS)
    rng = np.random.default_rng(0)
    samples = [_some(source, block, -(-SAMPLE // max(len(blocks), 1)), rng) for block in blocks]
    return codec.trained(
        np.concatenate(samples) if samples else np.empty((0, source.num_classes), np.float32)
    )


def _some(
    source: LabelSet, block: int, wanted: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(r, D) outputs of random crops of one image block, from as few chunk columns as they are in."""
    rows: list[NDArray[np.float32]] = []
    for column in rng.permutation(source.layout.num_columns).tolist():
        outputs = source.raw_outputs(block, range(column, column + 1))
        outputs = outputs.reshape(-1, outputs.shape[-1])
        outputs = outputs[~np.isnan(outputs).any(-1)]
        chosen = rng.permutation(len(outputs))[: wanted - sum(map(len, rows))]
        rows.append(outputs[chosen])
        if sum(map(len, rows)) >= wanted:
            break
    return np.concatenate(rows)
