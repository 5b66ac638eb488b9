"""SQL over a store: catalogue tables and one view of crops per label set, streamed from the arrays into DuckDB.

A query is first planned against empty tables, whose columns have names that occur nowhere else: those that the
plan mentions are the ones that it scans, and only these are decoded. The views give NULL for the others, which
the plan does not look at. A stream may be scanned more than once, and is decoded again for each scan.

Reading is all that a query can do: one SELECT, without files, network, extensions or Python's variables.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from labelstore.analysis.arrow_batches import ArrowBatches
from labelstore.analysis.sql_tables import View, views
from labelstore.errors import LabelStoreError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from labelstore.store import Store

MEMORY_LIMIT = "2GB"
"""Memory for DuckDB's own tables; what does not fit goes to a temporary folder."""
BATCH_ROWS = 100_000
"""Rows of a result that are handed over at once."""
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*[KMGT]i?B", re.IGNORECASE)
_NO_CROPS = re.compile(r"Table with name crops does not exist", re.IGNORECASE)
MAX_QUERY = 100_000
"""Characters."""


def sql(
    store: Store,
    query: str,
    *,
    label_set: str | None = None,
    mask: str | None = None,
    memory_limit: str = MEMORY_LIMIT,
) -> pd.DataFrame:
    """The rows that a SELECT gives, as a DataFrame.

    Tables: images, classes, teachers, plans, label_sets, masks, shards, runs, results, and the views
    `crops_NAME`, one per label set, with the columns of `blocks.columns.COLUMNS`; `crops` is `label_set`'s, or
    the only one's. The column `region` is of the mask named, or of the teacher's only one. UsageError for anything but
    one SELECT that DuckDB understands, for `crops` where there are several label sets and none is named, and where
    DuckDB (`pip install 'labelstore[sql]'`) is missing.
    """
    with sql_batches(
        store, query, label_set=label_set, mask=mask, memory_limit=memory_limit
    ) as reader:
        frame: pd.DataFrame = reader.read_pandas()
        return frame


@contextmanager
def sql_batches(
    store: Store,
    query: str,
    *,
    label_set: str | None = None,
    mask: str | None = None,
    memory_limit: str = MEMORY_LIMIT,
) -> Iterator[pa.RecordBatchReader]:
    """The same rows as an Arrow reader, for results larger than memory; to be read inside the `with` only."""
    _check_limit(memory_limit)
    named = views(store, mask, label_set)
    with tempfile.TemporaryDirectory() as folder, _connected(folder, memory_limit) as connection:
        streams: list[ArrowBatches] = []
        try:
            statement = _one_select(connection, query)
            for view in named:
                view.attach_empty(connection)
            plan = str(connection.execute(f"EXPLAIN (FORMAT JSON) {statement}").fetchall())
            for view in named:
                stream = (
                    view.attach_rows(connection, columns)
                    if (columns := view.scanned(plan))
                    else None
                )
                streams += [] if stream is None else [stream]
            yield _plain_numbers(_reader(connection.sql(statement)))
        except Exception as error:  # noqa: BLE001 - DuckDB and Arrow have their own
            raise _explained(error, streams, named) from None


def sql_columns(store: Store, *, label_set: str | None = None) -> dict[str, tuple[str, ...]]:
    """Every table and view that a query may name -> its columns."""
    return {view.name: tuple(view.schema.names) for view in views(store, label_set=label_set)}


def _check_limit(text: str) -> None:
    # DuckDB takes a number below 0 for no limit at all
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(
            f"memory limit {text!r}: give a size above 0 with its unit, such as 500MB or 2GB"
        )


@contextmanager
def _connected(folder: str, memory_limit: str) -> Iterator[Any]:
    try:
        import duckdb
    except ImportError:
        raise UsageError("SQL needs DuckDB: pip install 'labelstore[sql]'") from None
    config: dict[str, Any] = {
        "enable_external_access": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "python_enable_replacements": "false",
        "memory_limit": memory_limit,
        "temp_directory": folder,
    }
    try:
        connection = duckdb.connect(":memory:", config=config)
    except duckdb.Error as error:
        raise UsageError(f"memory limit {memory_limit!r}: {_first_line(error)}") from None
    try:
        connection.execute("SET lock_configuration = true")
        yield connection
    finally:
        connection.close()


def _one_select(connection: Any, query: str) -> str:  # noqa: ANN401 - DuckDB is optional
    if len(query) > MAX_QUERY:
        raise UsageError(f"a query of {len(query):,} characters: at most {MAX_QUERY:,}")
    statements = connection.extract_statements(query)
    if len(statements) != 1:
        raise UsageError(f"{len(statements)} statements in one query: give one SELECT")
    (statement,) = statements
    kind = str(statement.type).rpartition(".")[2]
    if kind != "SELECT":
        raise UsageError(f"a query of kind {kind}: a store is only read here, give one SELECT")
    return str(statement.query).strip().rstrip(";")


def _reader(result: Any) -> pa.RecordBatchReader:  # noqa: ANN401 - DuckDB is optional
    # its name before DuckDB 1.5
    batches = getattr(result, "to_arrow_reader", None) or result.fetch_record_batch
    reader: pa.RecordBatchReader = batches(BATCH_ROWS)
    return reader


def _plain_numbers(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The same batches with DuckDB's decimals (0.1 is one, and so is sum() of whole numbers) as plain numbers."""
    import pyarrow as pa

    fields = [field.with_type(_plain(field.type)) for field in reader.schema]
    if all(field.equals(old) for field, old in zip(fields, reader.schema, strict=True)):
        return reader
    schema = pa.schema(fields)
    return pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in reader))


def _plain(kind: Any) -> Any:  # noqa: ANN401 - pyarrow's types have no stubs
    import pyarrow as pa

    if not pa.types.is_decimal(kind):
        return kind
    return pa.float64() if kind.scale else pa.int64()


def _explained(
    error: Exception, streams: Sequence[ArrowBatches], named: Sequence[View]
) -> Exception:
    """Return the error to raise for one of DuckDB or Arrow: the cause, where reading labels failed."""
    for stream in streams:
        if isinstance(stream.error, LabelStoreError):
            return stream.error
    several = [view.name for view in named if view.label_set is not None]
    if several and "crops" not in several and _NO_CROPS.search(str(error)):
        names = ", ".join(several)
        return UsageError(
            f"SQL: crops of {len(several)} label sets ({names}): choose one with `label_set`, or name these"
        )
    origin = type(error).__module__.partition(".")[0].lstrip("_")
    if origin in ("duckdb", "pyarrow"):
        return UsageError(f"SQL: {_first_line(error)}")
    return error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hints = [line for line in lines[1:] if line.startswith(("Did you mean", "Candidate"))]
    return " ".join([*lines[:1], *hints])
