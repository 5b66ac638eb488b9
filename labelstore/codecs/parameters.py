"""A codec's parameters: those that a user chose, those that were found, and those of a width of numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from labelstore.errors import UsageError

FOUND = ("class_ids", "codebook")
"""Parameters that no user chooses: the first shard, or a sample, decides them once for a label set."""


def identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a user chose of a codec: two label sets may agree in it and differ in what was found."""
    return {key: value for key, value in record.items() if key not in FOUND}


def in_short(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record for people and for files beside the catalogue: of a codebook its checksum."""
    short = dict(record)
    if short.get("codebook"):
        short["codebook"] = str(short["codebook"]).partition(":")[0]
    return short


def with_class_ids(record: Mapping[str, Any], form: str | None) -> dict[str, Any]:
    """The record with class ids in this form, None before the first shard has decided; as it is without class ids."""
    return {**record, "class_ids": form} if "class_ids" in record else dict(record)


def check_dtype(dtype: str, allowed: Collection[str]) -> str:
    """The dtype, if numbers can be kept so; UsageError otherwise."""
    if dtype not in allowed:
        raise UsageError(f"dtype {dtype!r}: choose one of {', '.join(allowed)} with `dtype`")
    return dtype
