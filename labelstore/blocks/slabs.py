"""How much of an image block to read at once, so that a walk over a store fits in memory."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labelstore.store.label_set import LabelSet

SLAB_VALUES = 1 << 23
"""Values decoded at once: 32 MB as float32, with copies about 200 MB."""


def slabs(labels: LabelSet, columns: range | None = None) -> tuple[range | None, ...]:
    """The chunk columns to ask for in turn: (None,) where a whole block fits, else ranges of them.

    Every block of a label set is walked the same way. Wide labels (`full`, C = 1000) come one chunk
    column at a time, or a few. With `columns`, only these are asked for.
    """
    layout = labels.layout
    fields = labels.codec.fields(labels.num_classes)
    if labels.codec.takes == "map":
        # a crop's label may list every class of the map
        width = min(max(prod(field.shape) for field in fields), labels.num_classes)
    else:
        width = max(prod(field.shape) for field in fields if field.per == "crop")
        # with an image's tail a recovered label lists more than a crop stores
        width = max(width, labels.codec.kept(labels.num_classes) or 0)
    column = layout.images_per_shard * layout.crops_per_chunk * width
    together = max(1, SLAB_VALUES // column)
    if columns is None and together >= layout.num_columns:
        return (None,)
    wanted = range(layout.num_columns) if columns is None else columns
    return tuple(wanted[at : at + together] for at in range(0, len(wanted), together))
