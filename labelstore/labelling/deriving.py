"""Making a variant: labels of the source are recovered, encoded again and committed block by block."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.shipping import MapBlocks
from labelstore.blocks.slabs import slabs
from labelstore.blocks.threads import map_in_threads
from labelstore.catalogue.records import LabelSetRow
from labelstore.codecs import codec_from_record, top_k
from labelstore.codecs.base import LabelCodec, SparseLabels, TopK
from labelstore.codecs.topk import first_classes
from labelstore.commit.lease_keeper import Progress
from labelstore.commit.settling import settled_codec
from labelstore.commit.source import BlockSource, LeasedBlock, MadeBlock
from labelstore.commit.staging import BlockArrays
from labelstore.commit.worker import work_through
from labelstore.labelling.codebook_sample import learnt_from
from labelstore.labelling.variant_choice import (
    check_derivable,
    check_name,
    derived_from,
    variant_name,
)
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
    held = check_name(source, codec, name)
    if held is not None:
        return held.uuid
    record = learnt_from(codec, source).to_record()
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
            labels = self._labels(leased.block, crop_shard, codec_from_record(_plain(row.codec)))
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
        """What `codec` keeps of one crop shard: TopK (n, m, K) or dense (n, m, C), NaN where missing."""
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


def _plain(record: Any) -> dict[str, Any]:  # noqa: ANN401 - a JSON object
    return {**record, "class_ids": "plain"} if "class_ids" in record else dict(record)


def _fewer(labels: SparseLabels, kept: int, num_classes: int) -> TopK:
    """The first `kept` classes of recovered labels (n, m, K); the others join the tail."""
    unlisted = num_classes - labels.probs.shape[-1]
    whole = TopK(
        class_ids=labels.class_ids, probs=labels.probs, tail=labels.rest * np.float32(unlisted)
    )
    return first_classes(whole, kept)
