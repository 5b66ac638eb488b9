"""The one printer of all commands: data on stdout, messages on stderr; with `--json` one object on one line.

`answer` prints a result, `say` a message; `table` and `drawn` make tables; the rest turns values into words.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.table import Table

from cli.wording import spoken

PIPE_WIDTH = 200
"""Columns of a table that is written to a file or a pipe: no line is folded."""
SENTENCES = ("command", "note", "notes", "reason", "what")
"""Fields of a record that are sentences of the library, or several of them."""
T = TypeVar("T")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def answer(record: object, *shown: object, json: bool) -> None:
    """Print what a command found: its record with `--json`, otherwise what is `shown` of it, for people."""
    if json:
        print_json(record)
    else:
        print_all(*shown)


def print_all(*shown: object) -> None:
    """Print each for people: a text as it is, a mapping as names and values, anything else as rich draws it."""
    for each in shown:
        if isinstance(each, str):
            print(visible(each))
        elif isinstance(each, Mapping):
            print_fields(each)
        else:
            print_table(each)


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
    right: Collection[str] = (),
    dim: Collection[str] = (),
    is_plain: bool = False,
    **more: Any,  # noqa: ANN401 - rich's
) -> Table:
    """A table for people: the first `left` columns but for those in `right` are text, the others numbers.

    No cell is read as markup. A plain table has no lines.
    """
    from rich.table import Table
    from rich.text import Text

    lines: dict[str, Any] = {"box": None, "pad_edge": False} if is_plain else {}
    table = Table(title=None if title is None else Text(title), **lines, **more)
    for at, name in enumerate(columns):
        table.add_column(
            Text(name),
            justify="left" if at < left and name not in right else "right",
            style="dim" if name in dim else "",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def table(
    title: str | None,
    things: Iterable[T],
    columns: Mapping[str, Callable[[T], str]],
    **more: Any,  # noqa: ANN401 - as `drawn` takes them
) -> Table:
    """`drawn`, with a row for each thing and the text of each column's cell from the thing."""
    rows = [[cell(thing) for cell in columns.values()] for thing in things]
    return drawn(title, list(columns), rows, **more)


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


def duration(seconds: float) -> str:
    """A time span in at most two units.

    >>> duration(8), duration(75), duration(7320), duration(200_000)
    ('8 s', '1 min 15 s', '2 h 2 min', '2 d 7 h')
    """
    whole = round(seconds)
    for size, name, part_size, part_name in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part_size} {part_name}"
    return f"{whole} s"
