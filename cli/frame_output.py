"""Rows of a table on stdout or in a file: as a table for people, CSV, Parquet, JSON or Markdown, batch by batch."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from cli.output import drawn, plain, print_table, say

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula, also where the file quotes it."""
FORMATS = ("table", "csv", "parquet", "json", "md")
ENDINGS = {".csv": "csv", ".parquet": "parquet", ".json": "json", ".md": "md"}
TABLE_ROWS = 60
"""Rows that a table for people shows; the other formats have all."""

Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="|".join(FORMATS),
        help="Form of the rows; by --out's ending, else a table.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the rows there.")]


def chosen_format(form: str | None, out: Path | None, *, json: bool = False) -> str:
    """The format asked for by --format, --json or the file's ending; UsageError for one that is none.

    StorageError where the file's folder is not there.
    """
    from labelstore.errors import UsageError

    if out is not None:
        from labelstore.arrays.durable import check_place

        check_place(out)
    if json:
        return "json"
    if form is None and out is None:
        return "table"
    if form is None:
        assert out is not None
        if out.suffix.lower() not in ENDINGS:
            raise UsageError(
                f"--out {out}: give a file that ends in {', '.join(ENDINGS)}, or its form with --format"
            )
        return ENDINGS[out.suffix.lower()]
    if form not in FORMATS:
        raise UsageError(f"--format {form}: choose one of {', '.join(FORMATS)}")
    if form == "parquet" and out is None:
        raise UsageError("--format parquet is no text: give --out FILE")
    return form


def write_rows(
    reader: pa.RecordBatchReader, form: str, out: Path | None, *, title: str = ""
) -> int:
    """Write every batch in that format, to a file or stdout; the number of rows. A file appears when it is whole.

    StorageError where the disk refuses, UsageError for values that the format cannot hold.
    """
    if out is None:
        if form == "table":
            return _print_rows(reader, title)
        with _stdout() as file:
            return _write(reader, form, file)
    from labelstore.arrays.durable import storage_errors

    with storage_errors(out):
        if out.exists() and not out.is_file():
            # a device or a pipe is written to, never replaced by a file
            with out.open("wb") as file:
                return _write(reader, "md" if form == "table" else form, file)
        building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        try:
            with building.open("wb") as file:
                rows = _write(reader, "md" if form == "table" else form, file)
            building.replace(out)
        finally:
            building.unlink(missing_ok=True)
    say(f"{rows:,} rows written to {out}")
    return rows


def frame_reader(frame: pd.DataFrame) -> pa.RecordBatchReader:
    """The rows of a DataFrame as `write_rows` wants them."""
    import pyarrow as pa

    return pa.Table.from_pandas(frame, preserve_index=False).to_reader()


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


def _write(reader: pa.RecordBatchReader, form: str, file: BinaryIO | IO[bytes]) -> int:
    write = {"csv": _write_csv, "parquet": _write_parquet, "json": _write_json, "md": _write_md}[
        form
    ]
    return write(reader, file)


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


def _md_row(cells: list[str]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _print_rows(reader: pa.RecordBatchReader, title: str) -> int:
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
    return min(len(rows), TABLE_ROWS)


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

    schema = pa.schema([field.with_type(_csv_type(field.type)) for field in reader.schema])
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


def no_formula(text: str | None) -> str | None:
    """The text as a spreadsheet takes it for text: what begins like a formula gets an apostrophe."""
    return f"'{text}" if text and text[0] in FORMULA_STARTS else text


def _is_bytes(kind: Any) -> bool:  # noqa: ANN401 - pyarrow's types have no stubs
    return str(kind) in ("binary", "large_binary", "binary_view") or str(kind).startswith(
        "fixed_size_binary"
    )
