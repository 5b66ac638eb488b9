"""A codec's parameters as the catalogue keeps them: checked once when they come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from labelstore.errors import UsageError

Codec = TypeVar("Codec")

FOUND = ("class_ids", "codebook")
"""Parameters that no user chooses: the first shard, or a sample, decides them once for a label set."""


def codec_from_parameters(cls: type[Codec], record: Mapping[str, Any]) -> Codec:
    """cls(**record) without `name`; UsageError for parameters that the codec does not have."""
    known = {parameter.name for parameter in fields(cls)}  # type: ignore[arg-type]
    parameters = {key: value for key, value in record.items() if key != "name"}
    unknown = sorted(parameters.keys() - known)
    if unknown:
        raise UsageError(
            f"codec {record.get('name')!r} has no parameter {unknown[0]!r}: it has {', '.join(sorted(known))}"
        )
    return cls(**parameters)


def identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a user chose of a codec: two label sets may agree in it and differ in what was found."""
    return {key: value for key, value in record.items() if key not in FOUND}


def in_short(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record for people and for files beside the catalogue: of a codebook its checksum."""
    short = dict(record)
    if short.get("codebook"):
        short["codebook"] = str(short["codebook"]).partition(":")[0]
    return short
