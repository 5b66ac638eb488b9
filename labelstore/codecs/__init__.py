"""Label codecs: how a teacher's soft label becomes arrays, and arrays a soft label (FKD 3.5).

A codec declares its arrays and owns both directions; adding one is one dataclass and one line in `CODECS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from labelstore.codecs.base import Arrays, Field, LabelCodec, SparseLabels, TopK
from labelstore.codecs.dense import Full
from labelstore.codecs.keeps import keeps_max_probability
from labelstore.codecs.marginal import Hard, MarginalRenorm, MarginalSmoothing, Smoothing
from labelstore.codecs.recovery import densify, temper
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
    "keeps_max_probability",
    "temper",
    "top_k",
]

CODECS: dict[str, type[Full | Hard | Smoothing | MarginalSmoothing | MarginalRenorm]] = {
    "full": Full,
    "hard": Hard,
    "smoothing": Smoothing,
    "ms": MarginalSmoothing,
    "mr": MarginalRenorm,
}
"""On-disk name and value of `--compression` -> codec."""

DEFAULT_K = 5


def codec_from_record(record: Mapping[str, Any]) -> LabelCodec:
    """The codec that a catalogue row describes; UsageError for one that this version does not know."""
    return _codec_class(str(record.get("name"))).from_record(record)


def codec_from_options(
    compression: str, k: int | None = None, dtype: str = "float16"
) -> LabelCodec:
    """The codec that `--compression`, `--k` and `--dtype` ask for; K is 5 where it is not said.

    UsageError for an unknown name or dtype, and for a K given to a codec that has none.

    >>> codec_from_options("ms", 10, "uint8")
    MarginalSmoothing(class_ids='plain', dtype='uint8', k=10)
    """
    cls = _codec_class(compression)
    options: dict[str, Any] = {"k": DEFAULT_K if k is None else k, "dtype": dtype}
    parameters = {field.name for field in fields(cls)}
    if k is not None and "k" not in parameters:
        raise UsageError(
            f"K={k} with {compression!r} labels: only ms and mr keep K classes, leave --k out"
        )
    return cls.from_record({name: value for name, value in options.items() if name in parameters})


def _codec_class(name: str) -> type[Full | Hard | Smoothing | MarginalSmoothing | MarginalRenorm]:
    if name not in CODECS:
        raise UsageError(
            f"no label codec {name!r}: choose one of {', '.join(CODECS)} with --compression"
        )
    return CODECS[name]
