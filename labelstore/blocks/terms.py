"""What a condition is made of: each term knows its kind and its value for the crops of a slab."""

# ruff: noqa: ANN401 - a value is an array, a text or one plain value

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from labelstore.blocks.columns import COLUMNS
from labelstore.blocks.text_column import Text

if TYPE_CHECKING:
    from labelstore.blocks.crop_slab import CropSlab

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.mod,
}
NUMBER_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "abs": np.abs,
    "sqrt": np.sqrt,
    "log": np.log,
    "isnan": np.isnan,
}
TEXT_FUNCTIONS: dict[str, Callable[[str, str], bool]] = {
    "startswith": str.startswith,
    "endswith": str.endswith,
    "contains": operator.contains,
}


class TermError(Exception):
    """Terms that do not go together; the parser says where."""


class Term(Protocol):
    """A part of a condition."""

    kind: str
    """number, text or bool."""

    def evaluate(self, slab: CropSlab) -> Any:
        """Its value for the crops of a slab: (n, m), or one value for all."""


class Literal:
    """A number, a text, true or false."""

    def __init__(self, value: float | bool | str) -> None:
        self.value = value
        self.kind = (
            "text"
            if isinstance(value, str)
            else "bool"
            if value is True or value is False
            else "number"
        )
        if self.kind == "number" and not math.isfinite(float(value)):
            raise TermError("a number is too large")

    def evaluate(self, slab: CropSlab) -> Any:
        """The value itself."""
        return self.value


class Name:
    """A column."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = {"int": "number", "float": "number"}.get(COLUMNS[name].kind, COLUMNS[name].kind)

    def evaluate(self, slab: CropSlab) -> Any:
        """The column's values."""
        return slab[self.name]


class And:
    """Both hold."""

    kind = "bool"

    def __init__(self, left: Term, right: Term) -> None:
        _need("bool", "'and'", left, right)
        self.left, self.right = left, right

    def evaluate(self, slab: CropSlab) -> Any:
        """Crop by crop."""
        return np.logical_and(self.left.evaluate(slab), self.right.evaluate(slab))


class Or:
    """Either holds."""

    kind = "bool"

    def __init__(self, left: Term, right: Term) -> None:
        _need("bool", "'or'", left, right)
        self.left, self.right = left, right

    def evaluate(self, slab: CropSlab) -> Any:
        """Crop by crop."""
        return np.logical_or(self.left.evaluate(slab), self.right.evaluate(slab))


class Not:
    """It does not hold."""

    kind = "bool"

    def __init__(self, term: Term) -> None:
        _need("bool", "'not'", term)
        self.term = term

    def evaluate(self, slab: CropSlab) -> Any:
        """Crop by crop."""
        return np.logical_not(self.term.evaluate(slab))


class Compare:
    """Two terms of one kind side by side."""

    kind = "bool"

    def __init__(self, sign: str, left: Term, right: Term) -> None:
        if left.kind != right.kind:
            raise TermError(f"a {left.kind} is compared with a {right.kind}")
        if left.kind != "number" and sign not in ("==", "!="):
            raise TermError(f"{left.kind} has no order: only == and != compare it")
        self.sign, self.left, self.right = sign, left, right

    def evaluate(self, slab: CropSlab) -> Any:
        """Crop by crop; numbers as the column's type has them."""
        left, right = self.left.evaluate(slab), self.right.evaluate(slab)
        if self.left.kind == "text":
            equal = _same_text(left, right)
            return equal if self.sign == "==" else np.logical_not(equal)
        return np.asarray(COMPARISONS[self.sign](left, right))


class Member:
    """A term is one of a list of literals."""

    kind = "bool"

    def __init__(self, term: Term, literals: tuple[Literal, ...]) -> None:
        for literal in literals:
            if literal.kind != term.kind:
                raise TermError(f"a {term.kind} is looked for in a list with a {literal.kind}")
        self.comparisons = [Compare("==", term, literal) for literal in literals]

    def evaluate(self, slab: CropSlab) -> Any:
        """Crop by crop."""
        return np.logical_or.reduce(
            [np.broadcast_to(np.asarray(c.evaluate(slab)), slab.shape) for c in self.comparisons]
        )


class Operation:
    """Arithmetic on two numbers."""

    kind = "number"

    def __init__(self, sign: str, left: Term, right: Term) -> None:
        _need("number", repr(sign), left, right)
        self.sign, self.left, self.right = sign, left, right

    def evaluate(self, slab: CropSlab) -> Any:
        """Whole numbers as float64, which hold any product of two sides; others as they are."""
        found = OPERATIONS[self.sign](
            *(_unbounded(t.evaluate(slab)) for t in (self.left, self.right))
        )
        # a number without columns stays a plain one, so that it is compared in the column's type
        return float(found) if np.ndim(found) == 0 else found


class Call:
    """A function of one number."""

    def __init__(self, name: str, argument: Term) -> None:
        _need("number", f"{name}()", argument)
        self.name, self.argument = name, argument
        self.kind = "bool" if name == "isnan" else "number"

    def evaluate(self, slab: CropSlab) -> Any:
        """Crop by crop."""
        found = NUMBER_FUNCTIONS[self.name](_unbounded(self.argument.evaluate(slab)))
        if self.kind == "number" and np.ndim(found) == 0:
            return float(found)
        return found


class TextCall:
    """A text column begins with, ends with or contains a text."""

    kind = "bool"

    def __init__(self, name: str, argument: Term, pattern: Literal) -> None:
        if not isinstance(argument, Name) or argument.kind != "text" or pattern.kind != "text":
            raise TermError(f"{name}() wants a text column and a 'text'")
        self.test = TEXT_FUNCTIONS[name]
        self.argument, self.pattern = argument, str(pattern.value)

    def evaluate(self, slab: CropSlab) -> Any:
        """Asked once of every name, not of every crop."""
        text = self.argument.evaluate(slab)
        assert isinstance(text, Text)
        return text.where(np.array([self.test(name, self.pattern) for name in text.names], bool))


def _need(kind: str, what: str, *terms: Term) -> None:
    for term in terms:
        if term.kind != kind:
            raise TermError(f"{what} wants a {kind} and got a {term.kind}")


def _unbounded(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        return value.astype(np.float64)
    return value


def _same_text(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        return left == right
    if isinstance(left, str):
        left, right = right, left
    assert isinstance(left, Text)
    if isinstance(right, str):
        return left.where(left.names == right)
    assert isinstance(right, Text)
    # names of the right by their number on the left, so that numbers are compared and not texts
    number = {name: i for i, name in enumerate(left.names)}
    translated = np.array([number.get(name, -2) for name in right.names] + [-2], np.int32)
    return left.codes == translated[np.maximum(right.codes, -1)]
