"""Label codecs: how a teacher's soft label becomes arrays, and arrays a soft label (FKD 3.5).

A codec declares its arrays and owns both directions; adding one is one dataclass and one line in `CODECS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, TypeAlias

from labelstore.codecs.base import (
    Arrays,
    Field,
    LabelCodec,
    MapTopK,
    SparseLabels,
    TopK,
    densify,
    id_dtype,
    identity_of,
    in_short,
)
from labelstore.codecs.class_union import over_union, widen
from labelstore.codecs.codec_traits import choose_class_ids, keeps_max_probability, missing_labels
from labelstore.codecs.dense import Full
from labelstore.codecs.labelmap import LabelMap
from labelstore.codecs.marginal import Hard, MarginalRenorm, MarginalSmoothing, Smoothing
from labelstore.codecs.product_codes import DEFAULT_WIDTH, ProductCodes
from labelstore.codecs.raw_outputs import Logits, RawOutputs
from labelstore.codecs.recovery import relative_temperature, temper
from labelstore.codecs.topk import top_k
from labelstore.errors import UsageError

__all__ = [
    "CODECS",
    "Arrays",
    "Field",
    "Full",
    "Hard",
    "LabelCodec",
    "LabelMap",
    "Logits",
    "MapTopK",
    "MarginalRenorm",
    "MarginalSmoothing",
    "ProductCodes",
    "RawOutputs",
    "Smoothing",
    "SparseLabels",
    "TopK",
    "choose_class_ids",
    "codec_from_options",
    "codec_from_record",
    "densify",
    "id_dtype",
    "identity_of",
    "in_short",
    "is_map",
    "keeps_max_probability",
    "missing_labels",
    "over_union",
    "relative_temperature",
    "temper",
    "top_k",
    "widen",
]

AnyCodec: TypeAlias = (
    Full | Hard | Smoothing | MarginalSmoothing | MarginalRenorm | Logits | ProductCodes | LabelMap
)

CODECS: dict[str, type[AnyCodec]] = {
    "full": Full,
    "hard": Hard,
    "smoothing": Smoothing,
    "ms": MarginalSmoothing,
    "mr": MarginalRenorm,
    "logits": Logits,
    "pq": ProductCodes,
    "labelmap": LabelMap,
}
"""On-disk name and value of `--compression` -> codec."""

_DEFAULTS: dict[str, Any] = {
    "k": 5,
    "dtype": "float16",
    "tail_classes": 0,
    "values_per_code": DEFAULT_WIDTH,
}
_BELONGS = {
    "k": "K={value} with {compression!r} labels: only ms, mr and labelmap keep K classes, leave `k` out",
    "dtype": "dtype {value} with {compression!r} labels, which hold no numbers of another width: leave `dtype` out",
    "tail_classes": "tail_classes={value} with {compression!r} labels: only ms has a tail of the image, leave it out",
    "values_per_code": "values_per_code={value} with {compression!r} labels: only pq has codes, leave it out",
}
"""Why a parameter is refused where a codec does not have it."""


def codec_from_record(record: Mapping[str, Any]) -> LabelCodec:
    """The codec that a catalogue row describes; UsageError for one that this version does not know."""
    try:
        return _codec(tuple(record.items()))
    except TypeError:  # a value that no codec has, such as a list
        return _codec_class(str(record.get("name"))).from_record(record)


@lru_cache(maxsize=64)
def _codec(items: tuple[tuple[str, Any], ...]) -> LabelCodec:
    """Codecs never change: a record that comes back again and again is checked once."""
    record = dict(items)
    return _codec_class(str(record.get("name"))).from_record(record)


def codec_from_options(
    compression: str,
    k: int | None = None,
    dtype: str | None = None,
    tail_classes: int | None = None,
    values_per_code: int | None = None,
) -> LabelCodec:
    """The codec of that name; K is 5, dtype float16, tail_classes 0 and values_per_code 20 where not said.

    UsageError for an unknown name or dtype, and for a parameter given to a codec that does not have it.

    >>> codec_from_options("ms", 3, "uint8", tail_classes=100)
    MarginalSmoothing(class_ids='plain', dtype='uint8', k=3, tail_classes=100)
    """
    cls = _codec_class(compression)
    parameters = {field.name for field in fields(cls)}
    given = {
        "k": k,
        "dtype": dtype,
        "tail_classes": tail_classes or None,
        "values_per_code": values_per_code,
    }
    for name, value in given.items():
        if value is not None and name not in parameters:
            raise UsageError(_BELONGS[name].format(value=value, compression=compression))
    options = {**_DEFAULTS, **{name: value for name, value in given.items() if value is not None}}
    return cls.from_record({name: value for name, value in options.items() if name in parameters})


def is_map(record: Mapping[str, Any]) -> bool:
    """Whether a catalogue row describes label maps, whose arrays are per image; nothing else of it is looked at."""
    return _codec_class(str(record.get("name"))).takes == "map"


def _codec_class(name: str) -> type[AnyCodec]:
    if name not in CODECS:
        raise UsageError(
            f"no label codec {name!r}: choose one of {', '.join(CODECS)} with `compression`"
        )
    return CODECS[name]
