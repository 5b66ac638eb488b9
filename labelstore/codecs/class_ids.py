"""Class ids on disk: plain, or as rank in a table of each image's classes ("class table").

An image's crops name the same few dozen classes again and again. The table form keeps per image and
shard the list of them, most frequent first, and per kept class one byte: its rank in that list. Ranks
are small numbers and compress to half of the ids. 255 marks a missing crop; 254 an id that the table
has no room for, which then stands in `class_escape`, an array that is nearly always empty:

    class_id = class_escape if class_rank == 254 else class_table[class_rank]
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field, id_dtype, missing_id
from labelstore.errors import UsageError

ClassIdForm = Literal["plain", "table"]
"""On-disk form of class ids, fixed once per label set."""

TABLE_LENGTH = 254
ESCAPE = 254
MISSING = 255
_BINS_AT_ONCE = 4_000_000  # counters (image, class) held at a time: 32 MB


def check_form(form: str) -> str:
    """The form, if it is one; UsageError otherwise."""
    if form not in get_args(ClassIdForm):
        raise UsageError(f"class_ids={form!r}: choose one of {', '.join(get_args(ClassIdForm))}")
    return form


def id_fields(form: ClassIdForm, k: int, num_classes: int) -> tuple[Field, ...]:
    """The arrays that hold class ids of K kept classes."""
    ids = id_dtype(num_classes)
    sentinel = missing_id(ids)
    if form == "plain":
        return (
            Field(
                name="class_id",
                dtype=ids.str,
                shape=(k,),
                dimensions=("kept",),
                fill=sentinel,
                level=1,
                row_axes_first=True,
            ),
        )
    return (
        Field(
            name="class_rank",
            dtype="u1",
            shape=(k,),
            dimensions=("kept",),
            fill=MISSING,
            shuffle="noshuffle",
            level=1,
            row_axes_first=True,
        ),
        Field(
            name="class_table",
            dtype=ids.str,
            shape=(TABLE_LENGTH,),
            dimensions=("entry",),
            per="image",
            fill=sentinel,
            shuffle="shuffle",
            level=7,
        ),
        Field(
            name="class_escape",
            dtype=ids.str,
            shape=(k,),
            dimensions=("kept",),
            fill=sentinel,
            row_axes_first=True,
            may_be_empty=True,
        ),
    )


def encode_ids(ids: NDArray[Any], form: ClassIdForm, num_classes: int) -> dict[str, NDArray[Any]]:
    """Class ids (n, m, K) of one whole shard, missing crops as the sentinel -> arrays by field name."""
    dtype = id_dtype(num_classes)
    sentinel = missing_id(dtype)
    missing = ids[..., :1] == missing_id(ids.dtype)
    plain = np.where(missing, sentinel, ids).astype(dtype)
    if form == "plain":
        return {"class_id": plain}
    ranks = np.empty(plain.shape, np.uint8)
    table = np.full((len(plain), TABLE_LENGTH), sentinel, dtype)
    step = max(1, _BINS_AT_ONCE // num_classes)
    for start in range(0, len(plain), step):
        part = slice(start, start + step)
        ranks[part], table[part] = _rank(plain[part], missing[part], num_classes)
    escape = np.where(ranks == ESCAPE, plain, sentinel).astype(dtype)
    return {"class_rank": ranks, "class_table": table, "class_escape": escape}


def _rank(
    plain: NDArray[Any], missing: NDArray[np.bool_], num_classes: int
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Ranks (n, m, K) and tables (n, 254) of images whose counters fit in memory together."""
    images = len(plain)
    flat = plain.astype(np.intp)
    flat += np.arange(images)[:, None, None] * num_classes
    whole = np.broadcast_to(missing, flat.shape)
    there = flat[~whole] if missing.any() else flat.ravel()
    flat[whole] = 0
    counted = np.bincount(there, minlength=images * num_classes)
    named = np.flatnonzero(counted)
    image, class_id = np.divmod(named, num_classes)
    # one number that orders as (image, most frequent first, class): sorted ten times as fast as three keys
    bits, most = num_classes.bit_length(), int(counted.max(initial=0))
    order = (image * (most + 1) + most - counted[named] << bits) + class_id
    order.sort()
    class_id = order & ((1 << bits) - 1)
    rank = np.arange(len(order)) - np.searchsorted(image, image)
    listed = rank < TABLE_LENGTH
    image, class_id, rank = image[listed], class_id[listed], rank[listed]
    table = np.full((images, TABLE_LENGTH), missing_id(plain.dtype), plain.dtype)
    table[image, rank] = class_id
    rank_of = np.full(images * num_classes, ESCAPE, np.uint8)
    rank_of[image * num_classes + class_id] = rank
    ranks = rank_of[flat]
    ranks[whole] = MISSING
    return ranks, table


def decode_ids(arrays: Arrays, form: ClassIdForm) -> NDArray[Any]:
    """Arrays (n, m, K) of one shard or of any of its crops -> class ids; the sentinel where missing."""
    if form == "plain":
        return arrays["class_id"]
    ranks, table, escape = arrays["class_rank"], arrays["class_table"], arrays["class_escape"]
    padded = np.full((len(table), 256), missing_id(table.dtype), table.dtype)
    padded[:, :TABLE_LENGTH] = table
    index = ranks.astype(np.int32)
    index += (np.arange(len(table), dtype=np.int32) * 256)[:, None, None]
    ids: NDArray[Any] = padded.ravel().take(index, mode="clip")
    escaped = ranks == ESCAPE
    if escaped.any():
        ids[escaped] = escape[escaped]
    return ids
