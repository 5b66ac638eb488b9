"""A codec's parameters as the catalogue keeps them: checked once when they come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from labelstore.errors import UsageError

Codec = TypeVar("Codec")


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
