"""Which form of class ids is smaller: measured on a label set's first shard, then fixed for good."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field, LabelCodec, TopK
from labelstore.codecs.class_ids import ClassIdForm
from labelstore.codecs.marginal import KeptClasses

CROPS_PER_CHUNK = 20
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}  # blosc's own numbers

Codec = TypeVar("Codec", bound=LabelCodec)


def choose_class_ids(codec: Codec, first_shard: TopK, num_classes: int) -> Codec:
    """The codec with the form of class ids that takes fewer bytes for this shard (n, m, K).

    A codec without class ids comes back as it is. Only the arrays of class ids are encoded: the others are the same
    in every form.
    """
    if not isinstance(codec, KeptClasses):
        return codec
    candidates = [replace(codec, class_ids=form) for form in get_args(ClassIdForm)]

    def bytes_of_ids(candidate: KeptClasses) -> int:
        arrays = candidate.encode_ids(first_shard, num_classes)
        return _total_bytes(candidate.id_fields(num_classes), arrays)

    return min(candidates, key=bytes_of_ids)


def stored_bytes(codec: LabelCodec, labels: TopK | NDArray[np.float32], num_classes: int) -> int:
    """Bytes of all arrays of one shard after blosc-zstd, without index and checksums."""
    return _total_bytes(codec.fields(num_classes), codec.encode(labels, num_classes))


def _total_bytes(fields: Iterable[Field], arrays: Arrays) -> int:
    return sum(field_bytes(field, arrays[field.name]) for field in fields)


def field_bytes(
    field: Field, array: NDArray[Any], *, crops_per_chunk: int = CROPS_PER_CHUNK
) -> int:
    """Bytes of one array of one shard after blosc-zstd, in chunks as `field` asks for."""
    from numcodecs.blosc import Blosc  # type: ignore[import-untyped]  # half of this package's start-up

    crops = array.shape[1] if field.per == "crop" else 1
    step = crops_per_chunk if field.per == "crop" else array.shape[1]
    total = 0
    for start in range(0, max(crops, 1), step):
        chunk = array[:, start : start + step] if field.per == "crop" else array
        if field.may_be_empty and bool((chunk == field.fill).all()):
            continue
        if field.row_axes_first:
            leading = 2 if field.per == "crop" else 1
            chunk = np.moveaxis(chunk, range(leading), range(-leading, 0))
        compressor = Blosc("zstd", field.level, _SHUFFLES[field.shuffle])
        total += len(compressor.encode(np.ascontiguousarray(chunk)))
    return total
