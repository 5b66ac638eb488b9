"""A label set's codec at the moment when labels are encoded: the first shard decides how class ids are kept."""

from __future__ import annotations

from collections.abc import Callable

from labelstore.catalogue.records import LabelSetRow
from labelstore.codecs import choose_class_ids, codec_from_record
from labelstore.codecs.base import LabelCodec, TopK
from labelstore.store.store import Store


def settled_codec(
    store: Store, row: LabelSetRow, first: Callable[[], TopK | None], *, uuid: str
) -> LabelCodec:
    """The codec of a label set; its form of class ids is chosen on the first shard that anyone commits.

    `first` gives that shard's labels, None where none of its images has any. ConflictError where the label set of
    that name has another `uuid`: it was dropped and created again meanwhile.
    """
    if row.is_settled:
        return codec_from_record(row.codec)
    codec = codec_from_record({**row.codec, "class_ids": "plain"})
    labels = first()
    if labels is not None:
        codec = choose_class_ids(codec, labels, row.num_classes)
    return codec_from_record(store.settle_codec(row.name, codec.to_record(), uuid=uuid))
