"""Conditions over the columns of a crop, such as `area < 0.1 and max_probability < 0.2`.

A grammar of its own, in which nothing can be said but comparisons: text from anywhere may be given. What
SQL and Python have in common means the same in both: `and`, `or`, `not`, `in (...)`, comparisons (`=` is `==`,
`<>` is `!=`; `0.1 <= area < 0.2` may be chained), `+ - * / %`, and the functions below.

    condition   = conjunction {"or" conjunction}
    conjunction = negation {"and" negation}
    negation    = "not" negation | comparison
    comparison  = sum {("<" | "<=" | ">" | ">=" | "==" | "!=") sum} | sum ["not"] "in" "(" literal {"," literal} ")"
    sum         = product {("+" | "-") product}
    product     = factor {("*" | "/" | "%") factor}
    factor      = "-" factor | number | 'text' | "true" | "false" | column | function "(" ... ")" | "(" condition ")"

A probability is compared with a number as float32, as calibration does it. A crop whose value is not known
(NaN: no ground truth) satisfies no comparison but `!=`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.columns import COLUMNS
from labelstore.blocks.terms import (
    COMPARISONS,
    NUMBER_FUNCTIONS,
    TEXT_FUNCTIONS,
    And,
    Call,
    Compare,
    Literal,
    Member,
    Name,
    Not,
    Operation,
    Or,
    Term,
    TermError,
    TextCall,
)
from labelstore.errors import UsageError

if TYPE_CHECKING:
    from labelstore.blocks.crop_slab import CropSlab

MAX_LENGTH = 4000
"""Characters."""
MAX_WORDS = 500
"""Names, numbers and signs together, so that terms are never nested too deep to be evaluated."""
MAX_DEPTH = 40
"""Brackets, signs and negations within each other."""
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))"
    r"|(?P<text>'[^'\n]*'|\"[^\"\n]*\")"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|==|!=|<>|[-<>=+*/%(),]))"
)
_SAME = {"=": "==", "<>": "!="}
_KEYWORDS = frozenset({"and", "or", "not", "in", "true", "false"})


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A condition that was understood; `holds` says for which crops it is true."""

    text: str
    columns: frozenset[str]
    """Columns that it looks at."""
    term: Term = field(repr=False, compare=False)

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


class _Parser:
    """Reads one condition from left to right, one function per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text, self.columns = text, set[str]()
        if len(text) > MAX_LENGTH:
            raise UsageError(
                f"a condition of {len(text)} characters: at most {MAX_LENGTH}, use SQL for more"
            )
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise self._problem(f"{text[at]!r} is not understood", at)
            kind = str(found.lastgroup)
            word = found[kind]
            if kind == "name" and word.lower() in _KEYWORDS:
                kind, word = "sign", word.lower()
            self.tokens.append((kind, _SAME.get(word, word), found.start(kind)))
            at = found.end()
        if len(self.tokens) > MAX_WORDS:
            raise UsageError(
                f"a condition of {len(self.tokens)} names, numbers and signs: at most {MAX_WORDS}"
            )
        self.tokens.append(("end", "", len(text)))
        self.at, self.depth = 0, 0

    def whole(self) -> Term:
        """The whole text as one condition."""
        term = self._either()
        if self._kind() != "end":
            raise self._problem("an operator such as 'and' is missing")
        if term.kind != "bool":
            raise self._problem(
                f"this is a {term.kind} and not a condition: compare it with something", 0
            )
        return term

    # -- the grammar's rules ----------------------------------------------------------------------

    def _either(self) -> Term:
        return self._joined(self._both, "or", Or)

    def _both(self) -> Term:
        return self._joined(self._negation, "and", And)

    def _joined(self, part: Callable[[], Term], word: str, join: Callable[..., Term]) -> Term:
        term = part()
        while self._takes(word):
            term = self._made(join, term, part())
        return term

    def _negation(self) -> Term:
        if self._takes("not"):
            return self._made(Not, self._deeper(self._negation))
        return self._comparison()

    def _comparison(self) -> Term:
        left = self._sum()
        if self._word() in ("in", "not"):
            refused = self._takes("not")
            self._expect("in")
            found = self._made(Member, left, tuple(self._literals()))
            return self._made(Not, found) if refused else found
        chain: Term | None = None
        while self._word() in COMPARISONS:
            sign = self._next()
            right = self._sum()
            link = self._made(Compare, sign, left, right)
            chain = link if chain is None else self._made(And, chain, link)
            left = right
        return left if chain is None else chain

    def _sum(self) -> Term:
        return self._operations(self._product, "+-")

    def _product(self) -> Term:
        return self._operations(self._factor, "*/%")

    def _operations(self, part: Callable[[], Term], signs: str) -> Term:
        term = part()
        while self._word() and self._word() in signs and self._kind() == "sign":
            sign = self._next()
            term = self._made(Operation, sign, term, part())
        return term

    def _factor(self) -> Term:
        if self._takes("-"):
            return self._made(Operation, "-", Literal(0.0), self._deeper(self._factor))
        if self._takes("("):
            term = self._deeper(self._either)
            self._expect(")")
            return term
        if self._kind() == "name":
            return self._name()
        return self._literal()

    def _name(self) -> Term:
        place, name = self.tokens[self.at][2], self._next()
        if self._takes("("):
            return self._call(name, place)
        if name not in COLUMNS:
            raise self._problem(f"no column {name!r}: choose from {', '.join(COLUMNS)}", place)
        self.columns.add(name)
        return Name(name)

    def _call(self, name: str, place: int) -> Term:
        if name in NUMBER_FUNCTIONS:
            argument = self._deeper(self._either)
            self._expect(")")
            return self._made(Call, name, argument)
        if name in TEXT_FUNCTIONS:
            argument = self._deeper(self._either)
            self._expect(",")
            pattern = self._literal()
            self._expect(")")
            return self._made(TextCall, name, argument, pattern)
        allowed = ", ".join((*NUMBER_FUNCTIONS, *TEXT_FUNCTIONS))
        raise self._problem(f"no function {name!r}: choose from {allowed}", place)

    def _literals(self) -> list[Literal]:
        self._expect("(")
        found = [self._literal()]
        while self._takes(","):
            found.append(self._literal())
        self._expect(")")
        return found

    def _literal(self) -> Literal:
        negative = self._takes("-")
        kind, word, place = self.tokens[self.at]
        if kind == "number":
            self.at += 1
            return self._number(word, negative)
        if kind == "text" and not negative:
            self.at += 1
            return Literal(word[1:-1])
        if word in ("true", "false") and not negative:
            self.at += 1
            return Literal(word == "true")
        raise self._problem("a column, a number or 'text' is missing", place)

    def _number(self, word: str, negative: bool) -> Literal:
        try:
            return Literal(-float(word) if negative else float(word))
        except TermError as error:
            raise self._problem(str(error), self.tokens[self.at - 1][2]) from None

    # -- tokens -----------------------------------------------------------------------------------

    def _kind(self) -> str:
        return self.tokens[self.at][0]

    def _word(self) -> str:
        kind, word, _ = self.tokens[self.at]
        return word if kind == "sign" else ""

    def _next(self) -> str:
        word = self.tokens[self.at][1]
        self.at += 1
        return word

    def _takes(self, word: str) -> bool:
        if self._word() != word:
            return False
        self.at += 1
        return True

    def _expect(self, word: str) -> None:
        if not self._takes(word):
            raise self._problem(f"{word!r} is missing")

    def _deeper(self, rule: Callable[[], Term]) -> Term:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._problem(f"nested more than {MAX_DEPTH} deep")
        term = rule()
        self.depth -= 1
        return term

    def _made(self, kind: Callable[..., Term], *parts: object) -> Term:
        try:
            return kind(*parts)
        except TermError as error:
            raise self._problem(str(error), self.tokens[max(self.at - 1, 0)][2]) from None

    def _problem(self, problem: str, place: int | None = None) -> UsageError:
        place = self.tokens[self.at][2] if place is None else place
        shown = self.text if len(self.text) <= 200 else self.text[:200] + "..."
        return UsageError(f"condition {shown!r}, character {place + 1}: {problem}")
