"""Whether the fields of a dataclass hold what their annotations say, and their values as these want them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from labelstore.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LONGEST = 200
"""Characters of a wrong value that a message shows."""


def as_declared(values: DataclassInstance) -> dict[str, Any]:
    """Every field by name: text as the number or path that it stands for, lists as tuples.

    UsageError names the first field whose value is none of its type's.
    """
    found = {}
    for name, adapter in _adapters(type(values)).items():
        given = getattr(values, name)
        try:
            found[name] = adapter.validate_python(given)
        except ValidationError as error:
            shown = " ".join(repr(given).split())[:LONGEST]
            raise UsageError(f"{name}={shown}: {_reason(error)}") from error
    return found


@cache
def _adapters(dataclass: type[DataclassInstance]) -> Mapping[str, TypeAdapter[Any]]:
    """Made once, since making one takes longer than a hundred validations."""
    hints = get_type_hints(dataclass)
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(dataclass)}


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "missing":
        return f"it needs more values than {first['loc'][-1]}"
    text = first["msg"]
    return f"{text[0].lower()}{text[1:]}"
