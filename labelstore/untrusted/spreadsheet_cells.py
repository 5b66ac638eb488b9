"""Text that a spreadsheet takes for text, where a name of somebody else's begins like a formula."""

from __future__ import annotations

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins with one of these is a formula to a spreadsheet, also where the file quotes it."""


def no_formula(text: str | None) -> str | None:
    """The text as a spreadsheet takes it for text: what begins like a formula gets an apostrophe.

    >>> no_formula("=1+1"), no_formula("a=1"), no_formula(None)
    ("'=1+1", 'a=1', None)
    """
    return f"'{text}" if text and text[0] in FORMULA_STARTS else text


def from_cell(text: str) -> str:
    """The text again that `no_formula` made a cell of.

    >>> from_cell("'=1+1"), from_cell("'a"), from_cell("=1")
    ('=1+1', "'a", '=1')
    """
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA_STARTS) else text
