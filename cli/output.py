"""What commands print: data on stdout, messages on stderr; with `--json` one object on one line."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

from cli.wording import spoken

PIPE_WIDTH = 200
"""Columns of a table that is written to a file or a pipe: no line is folded."""
SENTENCES = ("command", "note", "notes", "reason", "what")
"""Fields of a record that are sentences of the library, or several of them."""
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def print_json(record: object) -> None:
    """Print one JSON value on one line of stdout; NaN and infinities become null."""
    print(json.dumps(plain(record), allow_nan=False))


def print_fields(record: Mapping[str, Any]) -> None:
    """Print name and value, a line each, values aligned."""
    width = max(map(len, record), default=0)
    for name, value in record.items():
        print(visible(f"{name:<{width}}  {value}"))


def print_table(renderable: object) -> None:
    """Print what `rich` can draw; away from a terminal as wide as it needs to be, and without colours."""
    # most commands draw nothing, and rich costs 0.1 s to import
    from rich.console import Console
    from rich.segment import Segment, Segments

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1 and no message

    console = Plain(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    drawn = [
        part if part.control else Segment(visible(part.text), part.style)
        for part in console.render(renderable)  # type: ignore[arg-type]  # rich has no name for what it draws
    ]
    console.print(Segments(drawn), end="")


def drawn(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: int = 1,
    caption: str | None = None,
    dim: Collection[str] = (),
) -> Table:
    """A table for people: the first `left` columns are text, the others numbers. No cell is read as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None if title is None else Text(title), caption=caption)
    for at, name in enumerate(columns):
        table.add_column(
            Text(name),
            justify="left" if at < left else "right",
            style="dim" if name in dim else "",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def number(value: float | None, form: str = ".4f", end: str = "") -> str:
    """A number in a table; "-" where there is none.

    >>> number(0.5), number(None), number(2, ".1f", "x")
    ('0.5000', '-', '2.0x')
    """
    return "-" if value is None else f"{value:{form}}{end}"


def visible(text: str) -> str:
    """The text with control characters written out, as names in a store may hold what commands a terminal.

    >>> print(visible("a\x1b[31mb"))
    a\\x1b[31mb
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def size(num_bytes: int | None) -> str:
    """Bytes for people, in powers of 1000.

    >>> size(1_500_000)
    '1.50 MB'
    """
    if num_bytes is None:
        return "-"
    value, unit = float(num_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return f"{num_bytes} B"
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {_UNITS[unit]}"


def parsed_size(text: str, flag: str) -> int:
    """Bytes that a text means: a number, with a unit of powers of 1000 or, as MiB, of 1024. UsageError for others.

    >>> parsed_size("285MB", "--budget"), parsed_size("1.5 GiB", "--budget"), parsed_size("1e6", "--budget")
    (285000000, 1610612736, 1000000)
    """
    from labelstore.errors import UsageError

    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*(?:([kKMGTP]?)(i?)[bB])?\s*", text)
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if not found or not number > 0:
        raise UsageError(f"{flag} {text[:40]!r}: give bytes, for example 285MB or 1.5GB")
    power = "kMGTP".index(found[2].replace("K", "k")) + 1 if found[2] else 0
    unit = 1024.0 if found[3] else 1000.0
    return round(number * unit**power)


def percent(share: float | None) -> str:
    """A share in percent; a half goes up, as it does in the page that a browser draws.

    >>> percent(0.08625), percent(0.5), percent(None)
    ('8.63%', '50.00%', '-')
    """
    if share is None or not math.isfinite(share):
        return "-"
    from decimal import ROUND_HALF_UP, Decimal

    return f"{Decimal(100 * share).quantize(Decimal('0.01'), ROUND_HALF_UP)}%"


def say(message: str) -> None:
    """Print a message for people, on stderr, with the flags of the command that runs."""
    print(visible(spoken(message)), file=sys.stderr)


def plain(value: object) -> object:
    """A value as JSON has it: bytes in hex, NaN and infinities as None, arrays as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    # NumPy scalars and arrays, recognised without importing NumPy
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {
            str(key): _sentences(entry) if key in SENTENCES else plain(entry)
            for key, entry in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, PurePath):
        # a path that is a URL has lost a slash
        return re.sub(r"^(s3|gs|az|https?):/(?!/)", r"\1://", str(value))
    return value


def _sentences(value: object) -> object:
    if isinstance(value, str):
        return spoken(value)
    return (
        [_sentences(entry) for entry in value] if isinstance(value, (list, tuple)) else plain(value)
    )
