"""Text files that somebody else may have made: of bounded size, whole, or one line that says what is wrong."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from labelstore.errors import RejectedInput

MAX_BYTES = 64_000_000
"""Largest file that is read whole: a million passes, or settings with as many classes."""


def read_text(path: Path) -> str:
    """A file of bounded size as text; RejectedInput where that cannot be."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise RejectedInput(f"{path} has more than {MAX_BYTES:,} bytes: it is no run's")
        return data.decode("utf-8")
    except OSError as error:
        raise RejectedInput(f"{path} cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise RejectedInput(f"{path} is damaged: no UTF-8 at byte {error.start}") from error


def read_table(path: Path, text: str, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file; RejectedInput unless it has the columns and every row is whole."""
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise RejectedInput(f"{path} is damaged: {error}") from error
    if not lines:
        raise RejectedInput(f"{path} is damaged: it is empty")
    head, *rows = lines
    missing = [name for name in needed if name not in head]
    if missing or len(set(head)) < len(head):
        raise RejectedInput(f"{path} is damaged: its first line names no column {missing[:1]}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise RejectedInput(
                f"{path} is damaged: line {number} has {len(row)} of {len(head)} values"
            )
    return [dict(zip(head, row, strict=True)) for row in rows]
