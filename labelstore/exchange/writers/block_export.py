"""One image block on its way out: the chosen images' boxes, flips and labels, read from the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs import LabelMap, widen
from labelstore.codecs.base import MapTopK, TopK
from labelstore.exchange.exported import Export, ExportedBlock
from labelstore.exchange.labels import EncodableLabels
from labelstore.store.layout import MIX_FIELDS

if TYPE_CHECKING:
    from labelstore.store import LabelSet


def read_block(
    export: Export, block: int, rows: NDArray[np.int64], inside: NDArray[np.int64]
) -> ExportedBlock:
    """The images `inside` (places in the block, whose image rows are `rows`) with the export's crops."""
    labels, crops = export.labels, export.crops
    per = labels.plan.crops_per_chunk
    columns = range(crops.start // per, -(-crops.stop // per))
    within = slice(crops.start - columns.start * per, crops.stop - columns.start * per)
    if export.as_maps:
        columns, within = range(1), slice(0, 1)
    boxes, flips = labels.crops(block, columns)
    facts: Mapping[str, NDArray[Any]] = labels.store.image_columns
    chosen = rows[inside]
    mixed = None
    if export.is_mixed:
        group = labels.store.group(f"crops/{labels.plan.name}")
        mixed = {
            field.name: group.read(block, columns, field.name)[inside, within]
            for field in MIX_FIELDS
        }
    return ExportedBlock(
        keys=[str(facts["key"][row]) for row in chosen],
        rows=chosen,
        ground_truth=labels.ground_truth[chosen],
        sides=np.stack([facts["height"][chosen], facts["width"][chosen]], 1).astype(np.int64),
        boxes=boxes[inside, within],
        flips=flips[inside, within],
        labels=(
            _maps(labels, block, inside)
            if export.as_maps
            else _labels(export, block, columns, inside, within)
        ),
        mixed=mixed,
    )


def _maps(labels: LabelSet, block: int, inside: NDArray[np.int64]) -> MapTopK:
    (arrays,) = labels.store.group(f"labels/{labels.name}").parts(block, None)
    return MapTopK(
        class_ids=arrays["map_class"][inside],
        logits=arrays["map_logit"][inside].astype(np.float32),
    )


def _labels(
    export: Export, block: int, columns: range, inside: NDArray[np.int64], within: slice
) -> EncodableLabels:
    """Labels as stored where that is float32 or outputs: recovering would scale them, and move their last place."""
    labels, codec = export.labels, export.labels.codec
    group = labels.store.group(f"labels/{labels.name}")
    if codec.takes == "outputs":
        return labels.raw_outputs(block, columns)[inside, within]
    at = export.temperature
    as_stored = (
        getattr(codec, "dtype", None) == "float32"
        and codec.takes == "probabilities"
        and at == labels.temperature
    )
    # an image's tail is no probability of the crop: such labels are exported as they are recovered
    as_stored &= not getattr(codec, "tail_classes", 0)
    if export.kept is None:
        if as_stored:
            return np.asarray(group.read(block, columns, "probability")[inside, within])
        return labels.dense(block, columns, at)[inside, within]
    found = labels.sparse(block, columns, at)
    if isinstance(codec, LabelMap):
        found = widen(found, export.kept, labels.num_classes)
    probs = group.read(block, columns, "probability") if as_stored else found.probs
    tail = (
        group.read(block, columns, "tail")
        if as_stored and "tail" in group.specs
        else found.rest * np.float32(labels.num_classes - export.kept)
    )
    return TopK(
        class_ids=found.class_ids[inside, within],
        probs=probs[inside, within],
        tail=tail[inside, within],
    )
