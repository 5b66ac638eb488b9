"""Writes rows and pictures: rows as a table for people, CSV, Parquet, JSON or Markdown, batch by batch."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from cli.field_options import option
from cli.output import drawn, plain, print_table, say
from labelstore.untrusted.spreadsheet_cells import no_formula

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from matplotlib.figure import Figure

FORMATS = ("table", "csv", "parquet", "json", "md")
ENDINGS = {".csv": "csv", ".parquet": "parquet", ".json": "json", ".md": "md"}
TABLE_ROWS = 60
"""Rows that a table for people shows; the other formats have all."""

PICTURES = (".png", ".svg", ".pdf", ".webp")


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """The form of a command's rows, and the file that they go to."""

    format: Annotated[str | None, option(metavar="|".join(FORMATS))] = None
    """Form of the rows; by --out's ending, else a table."""
    out: Annotated[Path | None, option(metavar="FILE")] = None
    """Write the rows there."""
    json: bool = False
    """Print one JSON object on stdout."""

    def __post_init__(self) -> None:
        """UsageError for a form that is none, StorageError where the file's folder is not there."""
        if self.out is not None:
            from labelstore.arrays.durable import check_place

            check_place(self.out)
        if not self.json and self.form not in FORMATS:
            raise _usage_error(f"--format {self.form}: choose one of {', '.join(FORMATS)}")
        if not self.json and self.form == "parquet" and self.out is None:
            raise _usage_error("--format parquet is no text: give --out FILE")

    @property
    def form(self) -> str:
        """The form in force: of --json, --format, or the file's ending."""
        if self.json:
            return "json"
        if self.format is not None or self.out is None:
            return self.format or "table"
        if (ending := self.out.suffix.lower()) not in ENDINGS:
            raise _usage_error(
                f"--out {self.out}: give a file that ends in {', '.join(ENDINGS)}, or its form with --format"
            )
        return ENDINGS[ending]

    @property
    def to_read(self) -> bool:
        """Whether the rows are for people."""
        return self.form in ("table", "md")

    def write(self, rows: pd.DataFrame | pa.RecordBatchReader, title: str = "") -> None:
        """Write or print every batch; a file appears when it is whole.

        StorageError where the disk refuses, UsageError for values that the format cannot hold.
        """
        import pyarrow as pa

        if not isinstance(rows, pa.RecordBatchReader):
            rows = pa.Table.from_pandas(rows, preserve_index=False).to_reader()
        form, out = self.form, self.out
        if out is None:
            if form == "table":
                _print_rows(rows, title)
                return
            with _stdout() as file:
                _WRITERS[form](rows, file)
            return
        write = _WRITERS["md" if form == "table" else form]
        if out.exists() and not out.is_file():
            # a device or a pipe is written to, never replaced by a file
            from labelstore.arrays.durable import storage_errors

            with storage_errors(out), out.open("wb") as file:
                write(rows, file)
            return
        with _appearing(out) as building, building.open("wb") as file:
            count = write(rows, file)
        say(f"{count:,} rows written to {out}")

    def print_also(self, rows: pd.DataFrame, title: str) -> None:
        """Print a second table beside rows that may have gone to a file."""
        RowOptions(format="table" if self.out else self.form).write(rows, title)


def _usage_error(message: str) -> Exception:
    from labelstore.errors import UsageError

    return UsageError(message)


@contextlib.contextmanager
def _stdout() -> Iterator[IO[bytes]]:
    """Stdout's bytes, with what was printed before in front of them."""
    sys.stdout.flush()
    binary = getattr(sys.stdout, "buffer", None)
    if binary is not None:
        yield binary
        binary.flush()
        return
    # stdout that was replaced by text, as tests do
    import io

    file = io.BytesIO()
    yield file
    sys.stdout.write(file.getvalue().decode())


def _write_csv(reader: pa.RecordBatchReader, file: IO[bytes]) -> int:
    from pyarrow import csv

    _check_csv(reader.schema)
    texts = _plain(reader)
    rows = 0
    with csv.CSVWriter(file, texts.schema) as writer:
        for batch in texts:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _write_parquet(reader: pa.RecordBatchReader, file: IO[bytes]) -> int:
    from pyarrow import parquet

    rows = 0
    with parquet.ParquetWriter(file, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _write_json(reader: pa.RecordBatchReader, file: IO[bytes]) -> int:
    """One object on one line: the columns' names, and a list of rows."""
    names = reader.schema.names
    file.write(f'{{"columns": {json.dumps(names)}, "rows": ['.encode())
    rows = 0
    for batch in reader:
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            text = json.dumps([_json_value(value) for value in row], default=str)
            file.write((", " if rows else "").encode() + text.encode())
            rows += 1
    file.write(b"]}\n")
    return rows


def _write_md(reader: pa.RecordBatchReader, file: IO[bytes]) -> int:
    names = reader.schema.names
    lines = [_md_row(names), _md_row(["---"] * len(names))]
    rows = 0
    for batch in reader:
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            lines.append(_md_row([_cell(value) for value in row]))
            rows += 1
        file.write(("\n".join(lines) + "\n").encode())
        lines = []
    file.write("".join(f"{line}\n" for line in lines).encode())
    return rows


_WRITERS: dict[str, Callable[[pa.RecordBatchReader, IO[bytes]], int]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "json": _write_json,
    "md": _write_md,
}
"""Form -> what writes rows in it, and returns their number."""


def _md_row(cells: list[str]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _print_rows(reader: pa.RecordBatchReader, title: str) -> None:
    rows: list[list[str]] = []
    # one row more than is shown says that there are more
    for batch in reader:
        columns = (
            column.to_pylist() for column in batch.slice(0, TABLE_ROWS + 1 - len(rows)).columns
        )
        rows += [[_cell(value) for value in row] for row in zip(*columns, strict=True)]
        if len(rows) > TABLE_ROWS:
            break
    table = drawn(title or None, reader.schema.names, rows[:TABLE_ROWS], left=0)
    for column, field in zip(table.columns, reader.schema, strict=True):
        column.justify = "right" if _is_number(field.type) else "left"
    print_table(table)
    if len(rows) > TABLE_ROWS:
        say(f"the first {TABLE_ROWS} rows: --format csv, json or --out FILE gives all")


def _is_number(kind: Any) -> bool:  # noqa: ANN401 - pyarrow's types have no stubs
    return str(kind).startswith(("int", "uint", "float", "double", "halffloat", "decimal"))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes):
        return value.hex()
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 100_000 else str(value)


def _json_value(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    # what lies in lists and structs too
    return plain(value) if isinstance(value, (bytes, list, dict, tuple)) else value


def _check_csv(schema: pa.Schema) -> None:
    """UsageError for columns of a type that CSV has no text for."""
    import pyarrow as pa
    from pyarrow import csv

    from labelstore.errors import UsageError

    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        try:
            csv.CSVWriter(pa.BufferOutputStream(), pa.schema([pa.field("", kind)])).close()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            what = "lists" if "list" in str(kind) else f"values of type {kind}"
            raise UsageError(
                f"column {field.name!r}: CSV holds no {what}, use json or parquet, or make it text in the query"
            ) from None


def _plain(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The same rows without dictionaries, which CSV cannot write, and with bytes in hex, as JSON has them."""
    import pyarrow as pa

    schema = pa.schema(
        [pa.field(no_formula(field.name) or "", _csv_type(field.type)) for field in reader.schema]
    )
    return pa.RecordBatchReader.from_batches(schema, (_csv_batch(b, schema) for b in reader))


def _csv_type(kind: Any) -> Any:  # noqa: ANN401 - pyarrow's types have no stubs
    import pyarrow as pa

    if _is_bytes(kind):
        return pa.string()
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _csv_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    arrays = [
        pa.array([None if v is None else v.hex() for v in column.to_pylist()], pa.string())
        if _is_bytes(column.type)
        else pa.array(map(no_formula, column.cast(field.type).to_pylist()), field.type)
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        else column.cast(field.type)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.record_batch(arrays, schema=schema)


def _is_bytes(kind: Any) -> bool:  # noqa: ANN401 - pyarrow's types have no stubs
    return str(kind) in ("binary", "large_binary", "binary_view") or str(kind).startswith(
        "fixed_size_binary"
    )


def check_picture(path: Path) -> None:
    """UsageError unless the ending is one of a picture, StorageError where its folder is not there."""
    from labelstore.arrays.durable import check_place

    check_place(path)
    if path.suffix.lower() not in PICTURES:
        raise _usage_error(f"--out {path}: give a file that ends in {', '.join(PICTURES)}")


def write_picture(figure: Figure, path: Path) -> None:
    """Save a figure; the file appears when it is whole. StorageError where the disk refuses."""
    with _appearing(path) as building:
        figure.savefig(building)


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` in the end; StorageError where the disk refuses."""
    from labelstore.arrays.durable import storage_errors

    building = path.with_name(f".{os.getpid()}-{path.name}")
    with storage_errors(path):
        try:
            yield building
            building.replace(path)
        finally:
            building.unlink(missing_ok=True)
