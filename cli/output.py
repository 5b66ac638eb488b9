"""What commands print: data on stdout, messages on stderr; with `--json` one object on one line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import PurePath
from typing import Any

PIPE_WIDTH = 200
"""Columns of a table that is written to a file or a pipe: no line is folded."""


def print_json(record: object) -> None:
    """Print one JSON value on one line of stdout; NaN and infinities become null."""
    print(json.dumps(_plain(record), allow_nan=False))


def print_fields(record: Mapping[str, Any]) -> None:
    """Print name and value, a line each, values aligned."""
    width = max(map(len, record), default=0)
    for name, value in record.items():
        print(f"{name:<{width}}  {value}")


def print_table(renderable: object) -> None:
    """Print what `rich` can draw; away from a terminal as wide as it needs to be, and without colours."""
    # most commands draw nothing, and rich costs 0.1 s to import
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(renderable)


def say(message: str) -> None:
    """Print a message for people, on stderr."""
    print(message, file=sys.stderr)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    # NumPy scalars and arrays, recognised without importing NumPy
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, PurePath):
        return str(value)
    return value
