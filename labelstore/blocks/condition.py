"""Conditions over the columns of a crop, such as `area < 0.1 and max_probability < 0.2`.

Text from anywhere may be given: it is parsed as a Python expression and only the parts named here are taken, none of
which can run anything. What SQL and Python have in common means the same in both: `and`, `or`, `not`, `in (...)`,
comparisons (`=` is `==`, `<>` is `!=`; `0.1 <= area < 0.2` may be chained), `+ - * / %`, columns, numbers, 'texts',
`true`, `false`, and the functions below.

A probability is compared with a number as float32, as calibration does it. A crop whose value is not known
(NaN: no ground truth) satisfies no comparison but `!=`.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.columns import COLUMNS, Text
from labelstore.errors import UsageError

if TYPE_CHECKING:
    from labelstore.blocks.crop_slab import CropSlab

MAX_LENGTH = 4000
"""Characters."""
MAX_WORDS = 500
"""Names, numbers and signs together, so that terms are never nested too deep to be evaluated."""
MAX_DEPTH = 40
"""Brackets within each other; signs and negations in a row."""
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
OPERATIONS: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("'+'", np.add),
    ast.Sub: ("'-'", np.subtract),
    ast.Mult: ("'*'", np.multiply),
    ast.Div: ("'/'", np.divide),
    ast.Mod: ("'%'", np.mod),
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
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))"
    r"|(?P<text>'[^'\n]*'|\"[^\"\n]*\")"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|==|!=|<>|[-<>=+*/%(),]))",
    re.ASCII,
)
_SAME = {"=": "==", "<>": "!="}
_KEYWORDS = {"and": "and", "or": "or", "not": "not", "in": "in", "true": "True", "false": "False"}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A condition that was understood; `holds` says for which crops it is true."""

    text: str
    columns: frozenset[str]
    """Columns that it looks at."""
    term: _Term = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Condition:
        """The condition that the text says; UsageError for anything else, with its place."""
        parser = _Parser(text)
        term = parser.whole()
        return cls(text=text.strip(), columns=frozenset(parser.columns), term=term)

    def holds(self, slab: CropSlab) -> NDArray[np.bool_]:
        """(n, m) True for the crops of a slab that satisfy it."""
        with np.errstate(all="ignore"):
            found = np.asarray(self.term.evaluate(slab), bool)
        return np.broadcast_to(found, slab.shape)


@dataclass(frozen=True)
class _Term:
    """A part of a condition: what kind of value it has, and that value for the crops of a slab."""

    kind: str
    """number, text or bool."""
    evaluate: Callable[[CropSlab], Any]
    """(n, m), or one value for all crops."""


class _Parser:
    """Writes the text as Python, lets Python parse it, and makes terms of the nodes that it knows."""

    def __init__(self, text: str) -> None:
        self.text, self.columns = text, set[str]()
        if len(text) > MAX_LENGTH:
            raise UsageError(
                f"a condition of {len(text)} characters: at most {MAX_LENGTH}, use SQL for more"
            )
        self.words: list[str] = []
        self.places: list[int] = []
        """Where each word stands in the text."""
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise self._problem(f"{text[at]!r} is not understood", at)
            kind = str(match.lastgroup)
            self.places.append(match.start(kind))
            self.words.append(self._python(kind, match[kind]))
            at = match.end()
        if len(self.words) > MAX_WORDS:
            raise UsageError(
                f"a condition of {len(self.words)} names, numbers and signs: at most {MAX_WORDS}"
            )
        depth = 0
        for word in self.words:
            depth += {"(": 1, ")": -1}.get(word, 0)
            if depth > MAX_DEPTH:
                raise self._problem(f"nested more than {MAX_DEPTH} deep", 0)
        if any(
            sum(1 for _ in run) > MAX_DEPTH for word, run in groupby(self.words) if word in "-not"
        ):
            raise self._problem(f"nested more than {MAX_DEPTH} deep", 0)

    def _python(self, kind: str, word: str) -> str:
        """The word as Python has it, ASCII only, so that a column of the parser is a character."""
        if kind == "number":
            if not math.isfinite(float(word)):
                raise self._problem("a number is too large", self.places[-1])
            return repr(float(word))
        if kind == "text":
            return ascii(word[1:-1])
        if kind == "name":
            # the mark keeps a column such as `class` from being a word of Python's
            return _KEYWORDS.get(word.lower(), f"c_{word}")
        return _SAME.get(word, word)

    def whole(self) -> _Term:
        """The whole text as one condition."""
        source = " ".join(self.words)
        ends = np.cumsum([len(word) + 1 for word in self.words]).tolist()
        self.starts = [0, *ends]
        try:
            tree = ast.parse(source, mode="eval")
        except SyntaxError as error:
            place = self._place((error.offset or 1) - 1)
            raise self._problem(
                "a column, a number or 'text' is missing, or an operator such as 'and' before it",
                place,
            ) from None
        term = self._term(tree.body)
        if term.kind != "bool":
            raise self._problem(
                f"this is a {term.kind} and not a condition: compare it with something", 0
            )
        return term

    # -- one method per kind of node --------------------------------------------------------------

    def _term(self, node: ast.expr) -> _Term:
        match node:
            case ast.Constant(value=bool() | float() | str() as value):
                kind = {bool: "bool", float: "number", str: "text"}[type(value)]
                return _Term(kind, lambda _: value)
            case ast.Name(id=name):
                return self._column(name[2:], node)
            case ast.BoolOp(op=op, values=nodes):
                word = "'and'" if isinstance(op, ast.And) else "'or'"
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                terms = [self._needed("bool", word, part) for part in nodes]
                return _Term("bool", lambda slab: reduce(join, (t.evaluate(slab) for t in terms)))
            case ast.UnaryOp(op=ast.Not(), operand=part):
                term = self._needed("bool", "'not'", part)
                return _Term("bool", lambda slab: np.logical_not(term.evaluate(slab)))
            case ast.UnaryOp(op=ast.USub(), operand=part):
                return self._operation(ast.Sub(), ast.Constant(0.0), part)
            case ast.BinOp(op=op, left=left, right=right) if type(op) in OPERATIONS:
                return self._operation(op, left, right)
            case ast.Compare(ops=[ast.In() | ast.NotIn() as op], left=left, comparators=[right]):
                return self._member(left, right, negated=isinstance(op, ast.NotIn))
            case ast.Compare(ops=ops, left=left, comparators=rest) if all(
                type(op) in COMPARISONS for op in ops
            ):
                terms = [self._term(part) for part in (left, *rest)]
                links = [
                    self._compared(op, a, b, node)
                    for op, (a, b) in zip(ops, pairwise(terms), strict=True)
                ]
                return _Term(
                    "bool", lambda slab: reduce(np.logical_and, (t.evaluate(slab) for t in links))
                )
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name[2:], arguments, node)
        raise self._problem("this is not understood here", node)

    def _column(self, name: str, node: ast.expr) -> _Term:
        if name not in COLUMNS:
            raise self._problem(f"no column {name!r}: choose from {', '.join(COLUMNS)}", node)
        self.columns.add(name)
        kind = COLUMNS[name].kind
        return _Term("number" if kind in ("int", "float") else kind, lambda slab: slab[name])

    def _operation(self, op: ast.operator, left: ast.expr, right: ast.expr) -> _Term:
        sign, apply = OPERATIONS[type(op)]
        a, b = self._needed("number", sign, left), self._needed("number", sign, right)

        def evaluate(slab: CropSlab) -> Any:  # noqa: ANN401 - an array or a number
            return _plain(apply(_unbounded(a.evaluate(slab)), _unbounded(b.evaluate(slab))))

        return _Term("number", evaluate)

    def _compared(self, op: ast.cmpop, left: _Term, right: _Term, node: ast.expr) -> _Term:
        if left.kind != right.kind:
            raise self._problem(f"a {left.kind} is compared with a {right.kind}", node)
        if left.kind != "number" and not isinstance(op, ast.Eq | ast.NotEq):
            raise self._problem(f"{left.kind} has no order: only == and != compare it", node)
        compare = COMPARISONS[type(op)]
        if left.kind != "text":
            return _Term(
                "bool", lambda slab: np.asarray(compare(left.evaluate(slab), right.evaluate(slab)))
            )
        negated = isinstance(op, ast.NotEq)
        return _Term(
            "bool",
            lambda slab: np.not_equal(
                _same_text(left.evaluate(slab), right.evaluate(slab)), negated
            ),
        )

    def _member(self, left: ast.expr, right: ast.expr, *, negated: bool) -> _Term:
        term = self._term(left)
        literals = right.elts if isinstance(right, ast.Tuple) else [right]
        if not literals or not all(map(_is_literal, literals)):
            raise self._problem("a list of numbers or 'texts' in brackets is missing", right)
        choices = [self._term(literal) for literal in literals]
        for choice in choices:
            if choice.kind != term.kind:
                raise self._problem(
                    f"a {term.kind} is looked for in a list with a {choice.kind}", left
                )
        equal = [self._compared(ast.Eq(), term, choice, left) for choice in choices]
        return _Term(
            "bool",
            lambda slab: np.not_equal(
                reduce(np.logical_or, (t.evaluate(slab) for t in equal)), negated
            ),
        )

    def _call(self, name: str, arguments: list[ast.expr], node: ast.expr) -> _Term:
        if name in NUMBER_FUNCTIONS and len(arguments) == 1:
            function = NUMBER_FUNCTIONS[name]
            term = self._needed("number", f"{name}()", arguments[0])
            kind = "bool" if name == "isnan" else "number"
            return _Term(kind, lambda slab: _plain(function(_unbounded(term.evaluate(slab)))))
        if name in TEXT_FUNCTIONS and len(arguments) == 2:
            text, pattern = arguments
            column = self._term(text)
            if not isinstance(text, ast.Name) or column.kind != "text" or not _is_text(pattern):
                raise self._problem(f"{name}() wants a text column and a 'text'", node)
            return _text_test(TEXT_FUNCTIONS[name], column, ast.literal_eval(pattern))
        if name in NUMBER_FUNCTIONS or name in TEXT_FUNCTIONS:
            wanted = "one number" if name in NUMBER_FUNCTIONS else "a text column and a 'text'"
            raise self._problem(f"{name}() wants {wanted}; something is missing or too much", node)
        allowed = ", ".join((*NUMBER_FUNCTIONS, *TEXT_FUNCTIONS))
        raise self._problem(f"no function {name!r}: choose from {allowed}", node)

    def _needed(self, kind: str, what: str, node: ast.expr) -> _Term:
        term = self._term(node)
        if term.kind != kind:
            raise self._problem(f"{what} wants a {kind} and got a {term.kind}", node)
        return term

    def _place(self, column: int) -> int:
        word = bisect_right(self.starts, column) - 1
        return self.places[word] if word < len(self.places) else len(self.text)

    def _problem(self, problem: str, where: int | ast.expr) -> UsageError:
        place = where if isinstance(where, int) else self._place(where.col_offset)
        shown = self.text if len(self.text) <= 200 else self.text[:200] + "..."
        return UsageError(f"condition {shown!r}, character {place + 1}: {problem}")


def _is_literal(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, float)
    return isinstance(node, ast.Constant)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _text_test(test: Callable[[str, str], bool], column: _Term, pattern: str) -> _Term:
    def evaluate(slab: CropSlab) -> NDArray[np.bool_]:
        text = column.evaluate(slab)
        assert isinstance(text, Text)
        # asked once of every name, not of every crop
        return text.where(np.array([test(name, pattern) for name in text.names], bool))

    return _Term("bool", evaluate)


def _unbounded(value: Any) -> Any:  # noqa: ANN401 - an array or a number
    """Whole numbers as float64, which hold any product of two sides; others as they are."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        return value.astype(np.float64)
    return value


def _plain(value: Any) -> Any:  # noqa: ANN401 - an array, a number or a truth value
    """A number without columns stays a plain one, so that it is compared in the column's type."""
    return value.item() if isinstance(value, np.generic) else value


def _same_text(left: Any, right: Any) -> Any:  # noqa: ANN401 - columns or texts in, truth values out
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
