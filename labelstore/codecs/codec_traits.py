"""What a codec is like, found by encoding with it: no list of codec names to keep up to date.

Whether thresholds mean the same of its labels, which form of class ids is smaller, what it writes for images without
labels, and how far labels of two machines may be apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field, LabelCodec, MapTopK, TopK, id_dtype, missing_id
from labelstore.codecs.class_ids import ClassIdForm
from labelstore.codecs.labelmap import LabelMap
from labelstore.codecs.marginal import KeptClasses
from labelstore.codecs.product_codes import ProductCodes

_ASKED = 0.6


def keeps_max_probability(codec: LabelCodec, num_classes: int) -> bool:
    """Whether a label's largest probability survives the codec; found by encoding one label.

    `hard` makes it 1 and `mr` scales it up: thresholds would mean something else.
    """
    if codec.takes == "map":
        return True  # pooled from the logits of cells, which are kept as they are
    if isinstance(codec, ProductCodes):
        return False  # nothing bounds how far codes are from the outputs
    found = codec.recover(_one_label(codec, num_classes), num_classes).max()
    return bool(abs(found - _ASKED) < 0.05)


def _one_label(codec: LabelCodec, num_classes: int) -> Arrays:
    """Arrays of one crop whose first class has probability 0.6."""
    dense = np.full((1, 1, num_classes), (1 - _ASKED) / max(num_classes - 1, 1), np.float32)
    dense[..., 0] = _ASKED
    kept = codec.kept(num_classes)
    label: TopK | NDArray[np.float32] = np.log(dense) if codec.takes == "outputs" else dense
    if kept is not None:
        label = TopK(
            class_ids=np.arange(kept, dtype=np.uint32)[None, None],
            probs=dense[..., :kept],
            tail=dense[..., kept:].sum(axis=-1),
        )
    return codec.encode(label, num_classes)


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


def missing_labels(
    codec: LabelCodec, num_images: int, num_crops: int, num_classes: int
) -> TopK | MapTopK | NDArray[np.float32]:
    """Return labels for `codec.encode` of n images with m crops each that were all left out."""
    ids = id_dtype(num_classes)
    if isinstance(codec, LabelMap):
        (field, *_) = codec.fields(num_classes)
        shape: tuple[int, ...] = (num_images, *field.shape)
        return MapTopK(
            class_ids=np.full(shape, missing_id(ids), ids),
            logits=np.full(shape, np.nan, np.float32),
        )
    kept = codec.kept(num_classes)
    if kept is None:
        return np.full((num_images, num_crops, num_classes), np.nan, np.float32)
    shape = (num_images, num_crops, kept)
    return TopK(
        class_ids=np.full(shape, missing_id(ids), ids),
        probs=np.full(shape, np.nan, np.float32),
        tail=np.full(shape[:2], np.nan, np.float32),
    )


TOLERANCES = {"float32": 0.001, "float16": 0.002, "uint8": 0.02}
"""By dtype: twice the largest rounding step, and what another device's kernels add."""
OUTPUTS = {"float16": 0.01, "uint8": 0.1, "pq": 0.5}
"""Of outputs before softmax. Those of 16 to 32 lie 1/64 apart in float16: one step moves a probability by 0.004. With 8
bits they lie up to 1/8 apart, and where a difference of the last place chooses another code, values move together."""
AUTOCAST_TOLERANCE = 0.05
"""More where the teacher ran in 8 or 11 bits of mantissa."""


def tolerance_of(codec: LabelCodec, facts: Mapping[str, Any]) -> float:
    """Largest difference of a probability that is no other label; `facts` are the label set's.

    >>> from labelstore.codecs import MarginalSmoothing
    >>> tolerance_of(MarginalSmoothing(k=2), {})
    0.002
    """
    dtype = getattr(codec, "dtype", "float32")
    autocast = AUTOCAST_TOLERANCE if facts.get("autocast", "none") != "none" else 0.0
    if codec.takes != "probabilities":
        return OUTPUTS.get(getattr(codec, "dtype", codec.name), TOLERANCES["float32"]) + autocast
    return TOLERANCES[dtype] + autocast
