"""Which form of class ids is smaller: measured on a label set's first shard, then fixed for good."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Field, LabelCodec, TopK
from labelstore.codecs.class_ids import ClassIdForm

CROPS_PER_CHUNK = 20
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}  # blosc's own numbers

Codec = TypeVar("Codec", bound=LabelCodec)


def choose_class_ids(codec: Codec, first_shard: TopK, num_classes: int) -> Codec:
    """The codec with the form of class ids that takes fewer bytes for this shard (n, m, K).

    A codec without class ids comes back as it is.
    """
    if not hasattr(codec, "class_ids"):
        return codec
    candidates = [replace(codec, class_ids=form) for form in get_args(ClassIdForm)]  # type: ignore[type-var]
    return min(candidates, key=lambda candidate: stored_bytes(candidate, first_shard, num_classes))


def stored_bytes(codec: LabelCodec, labels: TopK | NDArray[np.float32], num_classes: int) -> int:
    """Bytes of all arrays of one shard after blosc-zstd, without index and checksums."""
    arrays = codec.encode(labels, num_classes)
    return sum(field_bytes(field, arrays[field.name]) for field in codec.fields(num_classes))


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
