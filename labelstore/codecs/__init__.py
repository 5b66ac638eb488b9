"""Label codecs: how a teacher's soft label becomes arrays, and arrays a soft label (FKD 3.5).

A codec declares its arrays and owns both directions; adding one is one dataclass and one line in `CODECS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeAlias

from labelstore.codecs.base import Arrays, Field, LabelCodec, MapTopK, SparseLabels, TopK
from labelstore.codecs.class_union import over_union, widen
from labelstore.codecs.dense import Full
from labelstore.codecs.keeps import keeps_max_probability
from labelstore.codecs.labelmap import LabelMap
from labelstore.codecs.logits import Logits
from labelstore.codecs.marginal import Hard, MarginalRenorm, MarginalSmoothing, Smoothing
from labelstore.codecs.missing import missing_labels
from labelstore.codecs.recovery import densify, relative_temperature, temper
from labelstore.codecs.smallest import choose_class_ids
from labelstore.codecs.topk import id_dtype, top_k
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
    "Smoothing",
    "SparseLabels",
    "TopK",
    "choose_class_ids",
    "codec_from_options",
    "codec_from_record",
    "densify",
    "id_dtype",
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
    Full | Hard | Smoothing | MarginalSmoothing | MarginalRenorm | Logits | LabelMap
)

CODECS: dict[str, type[AnyCodec]] = {
    "full": Full,
    "hard": Hard,
    "smoothing": Smoothing,
    "ms": MarginalSmoothing,
    "mr": MarginalRenorm,
    "logits": Logits,
    "labelmap": LabelMap,
}
"""On-disk name and value of `--compression` -> codec."""

DEFAULT_K = 5
DEFAULT_DTYPE = "float16"


def codec_from_record(record: Mapping[str, Any]) -> LabelCodec:
    """The codec that a catalogue row describes; UsageError for one that this version does not know."""
    return _codec_class(str(record.get("name"))).from_record(record)


def codec_from_options(
    compression: str,
    k: int | None = None,
    dtype: str | None = None,
    tail_classes: int | None = None,
) -> LabelCodec:
    """The codec of that name; K is 5, dtype float16 and tail_classes 0 where not said.

    UsageError for an unknown name or dtype, and for a parameter given to a codec that does not have it.

    >>> codec_from_options("ms", 3, "uint8", tail_classes=100)
    MarginalSmoothing(class_ids='plain', dtype='uint8', k=3, tail_classes=100)
    """
    cls = _codec_class(compression)
    options: dict[str, Any] = {
        "k": DEFAULT_K if k is None else k,
        "dtype": DEFAULT_DTYPE if dtype is None else dtype,
        "tail_classes": tail_classes or 0,
    }
    parameters = {field.name for field in fields(cls)}
    if k is not None and "k" not in parameters:
        raise UsageError(
            f"K={k} with {compression!r} labels: only ms, mr and labelmap keep K classes, leave `k` out"
        )
    if dtype is not None and "dtype" not in parameters:
        raise UsageError(
            f"dtype {dtype} with {compression!r} labels, which hold classes and no probabilities: leave `dtype` out"
        )
    if tail_classes and "tail_classes" not in parameters:
        raise UsageError(
            f"tail_classes={tail_classes} with {compression!r} labels: only ms has a tail of the image, leave it out"
        )
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
