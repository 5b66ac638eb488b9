"""Bounds of a dataclass's fields, stated in their annotations, and whether the values keep them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from labelstore.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LONGEST = 200
"""Characters of a wrong value that a message shows."""


def law(advice: str, holds: Callable[[Any], bool]) -> AfterValidator:
    """A bound of a field, as `Annotated[float, law(...)]`; `advice` says what is allowed."""

    def check(value: object) -> object:
        if not holds(value):
            raise ValueError(advice, value)
        return value

    return AfterValidator(check)


def at_most(limit: int) -> AfterValidator:
    """The law of a largest value."""
    return law(f"it must be at most {limit:,}", lambda value: value <= limit)


_ABOVE_0 = law("it must be above 0", lambda value: value > 0)
_NOT_NEGATIVE = law("it must not be negative", lambda value: value >= 0)
Count = Annotated[int, _ABOVE_0]
Positive = Annotated[float, _ABOVE_0]
PositiveOrNone = Annotated[
    float | None, law("it must be above 0, or left out", lambda value: value is None or value > 0)
]
Whole = Annotated[int, _NOT_NEGATIVE]
NotNegative = Annotated[float, _NOT_NEGATIVE]
Share = Annotated[float, law("it must be within 0 and 1", lambda value: 0 <= value <= 1)]
Range = Annotated[
    tuple[float, float],
    law("give (low, high) with 0 < low <= high", lambda value: 0 < value[0] <= value[1]),
]


def as_declared(values: DataclassInstance) -> dict[str, Any]:
    """Every field by name: text as the number or path that it stands for, lists as tuples.

    UsageError names the first field whose value is none of its type's, breaks its law, or is a number that is not
    finite.
    """
    declared = {}
    for name, adapter in _adapters(type(values)).items():
        given = getattr(values, name)
        try:
            declared[name] = adapter.validate_python(given)
        except ValidationError as error:
            value, reason = _reason(error, given)
            shown = " ".join(repr(value).split())[:LONGEST]
            raise UsageError(f"{name}={shown}: {reason}") from error
    return declared


@cache
def _adapters(dataclass: type[DataclassInstance]) -> Mapping[str, TypeAdapter[Any]]:
    """Made once, since making one takes longer than a hundred validations."""
    hints, finite = get_type_hints(dataclass, include_extras=True), ConfigDict(allow_inf_nan=False)
    names = [field.name for field in dataclasses.fields(dataclass)]
    return {name: TypeAdapter(hints[name], config=finite) for name in names}


def _reason(error: ValidationError, given: object) -> tuple[object, str]:
    """The value that is refused, and why."""
    first = error.errors(include_url=False)[0]
    match first["type"]:
        case "value_error" if len(first["ctx"]["error"].args) == 2:
            advice, value = first["ctx"]["error"].args
            return value, advice
        case "missing":
            return given, f"it needs more values than {first['loc'][-1]}"
        case "finite_number":
            return given, "give a number that is finite"
    text = first["msg"]
    return given, f"{text[0].lower()}{text[1:]}"
