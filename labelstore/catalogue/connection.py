"""One way into the database: how transactions begin, what is retried, and which error a caller sees.

SQLite is driven with the driver's own transaction handling switched off and `BEGIN IMMEDIATE`, or
it loses updates. PostgreSQL transactions that write are SERIALIZABLE and take one table lock as
their first statement: a lock taken before the snapshot makes writers strictly serial, as SQLite's
are, so that the renames inside a commit are not run against a snapshot that is doomed.

Connections are opened per transaction and never kept: nothing is left over to cross a fork or a
thread. A transaction that begins inside another one of the same thread joins it, so that several
calls see one state of the catalogue, or are written together.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Dialect, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import LRUCache

from labelstore.catalogue import engines
from labelstore.catalogue.engines import CREATE, WRITE, parse_url, sqlite_url
from labelstore.catalogue.failures import is_busy, is_serialization_failure, translated, translation
from labelstore.catalogue.postgresql import postgresql_engine
from labelstore.catalogue.schema import MAX_CHARACTERS, MAX_STATEMENTS, first_foreign
from labelstore.errors import (
    ConflictError,
    DamagedShard,
    FormatVersionError,
    StorageError,
    StoreNotFound,
)

T = TypeVar("T")

OLDER = "is of an older format: `labelstore migrate STORE` brings it up to date"
"""Why nothing is written to a catalogue that this version has grown out of."""

_ASKED = "is open read-only"
"""Why nothing is written through this object, where that was asked for."""

_ATTEMPTS = 20

_BUSY_ATTEMPTS = 5
"""Waits of `BUSY_SECONDS` for other writers: hundreds of workers that begin together queue for longer than one."""

_LOG = logging.getLogger(__name__)


class Database:
    """Transactions on one catalogue database.

    `readonly` refuses every write; it is set by itself where the folder of a SQLite file cannot be
    written. `clock` gives Unix seconds; by default the server's clock on PostgreSQL, so that
    machines need not agree, and this machine's on SQLite. `frozen_mark` is the file whose presence says
    that nothing may be written any more; every writing transaction looks for it.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        readonly: bool = False,
        creating: bool = False,
        frozen_mark: Path | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        parsed = parse_url(url)
        self._clock = clock
        self._under_way = threading.local()
        self._frozen_mark = frozen_mark
        self.is_sqlite = parsed.drivername == "sqlite"
        self.name = parsed.database if self.is_sqlite else parsed.render_as_string()
        self.readonly = readonly
        self.why_readonly = _ASKED
        self._path: Path | None = None
        if self.is_sqlite:
            path = self._path = Path(parsed.database or "").absolute()
            mode = "rwc" if creating else "rw"
            if not creating and not path.is_file():
                raise StoreNotFound(
                    f"{path}: no catalogue there; check the path or run `labelstore.create`"
                )
            if creating:
                # SQLite would make it 0644 whatever the umask says, and a group's other members could not join
                _make_file(path)
            elif not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
                # Not immutable=1: a rollback journal left by a killed writer must be noticed, not
                # read past.
                self.readonly, mode = True, "ro"
                self.why_readonly = _whose(path)
            self._engine = sqlite_engine(path, mode=mode, readonly=self.readonly)
        else:
            self._engine = postgresql_engine(parsed)

    def close(self) -> None:
        """Let go of the engine; no connection is open between calls."""
        self._engine.dispose()

    def now(self, conn: Connection) -> float:
        """Unix seconds by the catalogue's clock."""
        if self._clock is not None:
            return self._clock()
        if self.is_sqlite:
            return time.time()
        return float(
            conn.execute(text("SELECT extract(epoch FROM clock_timestamp())::float8")).scalar_one()
        )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that writes; commits at the end, rolls back on any error.

        Other writers wait (ConflictError after a minute). Inside another transaction of this thread it is part of
        that one, which must be one that writes.
        """
        self.check_writable()
        if self.readonly:
            raise self._readonly_error()
        with self._begun(WRITE) as conn:
            # again: it may have been frozen while this transaction waited for the lock
            self._refuse_if_frozen()
            yield conn

    def check_writable(self) -> None:
        """StorageError where no process of this user may write, whether or not this one asked to read alone."""
        self._refuse_if_frozen()
        if self.why_readonly != _ASKED:
            raise self._readonly_error()

    def _readonly_error(self) -> StorageError:
        return StorageError(f"{self.name}: the catalogue {self.why_readonly}; nothing was written")

    @contextmanager
    def creating(self) -> Iterator[Connection]:
        """A transaction that makes the tables: as `transaction`, before there is a table to lock."""
        with self._begun(CREATE) as conn:
            yield conn

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the catalogue and writes nothing.

        Inside another transaction of this thread it is part of that one. Keep it short: it holds up writers.
        """
        with self._begun(None) as conn:
            yield conn

    @contextmanager
    def _begun(self, purpose: str | None) -> Iterator[Connection]:
        """The transaction of this thread that is under way, or a new one for this purpose."""
        current: Connection | None = getattr(self._under_way, "connection", None)
        if current is not None:
            # it would wait for the transaction around it
            assert purpose is None or current.get_execution_options().keys() & {WRITE, CREATE}
            yield current
            return
        try:
            with self._engine.connect() as conn:
                if purpose is not None:
                    conn = conn.execution_options(**{purpose: True})
                with conn.begin():
                    self._under_way.connection = conn
                    try:
                        yield conn
                    finally:
                        self._under_way.connection = None
        except DBAPIError as error:
            raise translation(self.name, error) from error

    def foreign_schema(self) -> str | None:
        """The name of a view, trigger, virtual table, computed column, ... in a SQLite file.

        That is code which somebody else would run here.
        """
        if not self.is_sqlite:
            return None
        with self.reading() as conn:
            query = (
                f"SELECT type, name, substr(sql, 1, {MAX_CHARACTERS + 1}) FROM sqlite_master "
                f"LIMIT {MAX_STATEMENTS + 1}"
            )
            statements = conn.exec_driver_sql(query).all()
        if len(statements) > MAX_STATEMENTS:
            return f"{MAX_STATEMENTS} tables and more"
        return first_foreign(statements)

    def structure_problem(self) -> str | None:
        """Ask SQLite to check its pages and indexes; None when all is well, or on PostgreSQL."""
        if not self.is_sqlite:
            return None
        with self.reading() as conn:
            found = conn.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
        return None if found == "ok" else str(found).splitlines()[0]

    def num_bytes(self) -> int:
        """Size of a SQLite file."""
        assert self._path is not None
        return self._path.stat().st_size

    def copy_to(self, path: Path) -> None:
        """A compact copy of a SQLite database in a new file (`VACUUM INTO`); not yet fsynced."""
        with translated(self.name):
            try:
                # not SQLAlchemy's connection, which would begin a transaction, and VACUUM refuses that
                connection = sqlite3.connect(
                    f"file:{quote(str(self._path))}?mode=ro", uri=True, isolation_level=None
                )
                try:
                    connection.execute(f"PRAGMA busy_timeout={engines.BUSY_SECONDS * 1000}").close()
                    # a relative path that begins with `file:` would be read as a URL
                    connection.execute("VACUUM INTO ?", (str(path.absolute()),)).close()
                finally:
                    connection.close()
            except sqlite3.Error as error:
                raise DBAPIError("VACUUM INTO", None, error) from error

    def compact(self) -> None:
        """Give back what a SQLite file no longer needs, as far as there is room to; after a kill it is as it was."""
        if not self.is_sqlite:
            return
        # no room for a second copy, or another process reads: the file stays larger, and sound
        with suppress(sqlite3.Error):
            connection = sqlite3.connect(
                f"file:{quote(str(self._path))}?mode=rw", uri=True, isolation_level=None
            )
            try:
                connection.execute("VACUUM").close()
            finally:
                connection.close()

    def older_copy(self) -> Database:
        """A copy of an older SQLite catalogue, to be brought up to date for reading; it goes with its object.

        FormatVersionError on a server, where a copy would be one more catalogue.
        """
        if not self.is_sqlite:
            raise FormatVersionError(f"{self.name}: the catalogue {OLDER}")
        folder = Path(tempfile.mkdtemp(prefix="labelstore-"))
        try:
            self.copy_to(folder / "catalogue.db")
            copy = Database(
                sqlite_url(folder / "catalogue.db"),
                frozen_mark=self._frozen_mark,
                clock=self._clock,
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(copy, shutil.rmtree, folder, ignore_errors=True)
        copy.name, copy.why_readonly = self.name, OLDER
        return copy

    def _refuse_if_frozen(self) -> None:
        if self._frozen_mark is not None and self._frozen_mark.exists():
            raise StorageError(
                f"{self._frozen_mark.parent} is frozen and never changes: work on the store that it was frozen "
                "from, or label a new one"
            )

    def write(self, work: Callable[[Connection], T]) -> T:
        """`work` in a writing transaction, again from the start where PostgreSQL asks for it or others are in the way.

        Inside another transaction of this thread it is that one that is begun again.
        """
        if getattr(self._under_way, "connection", None) is not None:
            with self.transaction() as conn:
                return work(conn)
        attempt = waited = 0
        while True:
            try:
                with self.transaction() as conn:
                    return work(conn)
            except ConflictError as error:
                if is_busy(error):
                    waited += 1
                    if waited == _BUSY_ATTEMPTS:
                        raise
                    _LOG.warning(
                        "%s: waiting for other writers (%d more minutes at most)",
                        self.name, _BUSY_ATTEMPTS - waited,
                    )  # fmt: skip
                elif is_serialization_failure(error) and attempt + 1 < _ATTEMPTS:
                    time.sleep(random.uniform(0, 0.01 * 2 ** min(attempt, 6)))
                    attempt += 1
                else:
                    raise


def _make_file(path: Path) -> None:
    """An empty file with the rights that the umask leaves; one that is there stays as it is."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror or error}): nothing was written"
        ) from error


def _whose(path: Path) -> str:
    """Why a file, or its folder, cannot be written by this user, and what its owner can do."""
    closed = path if not os.access(path, os.W_OK) else path.parent
    try:
        kept = f"{stat.filemode(closed.stat().st_mode)}, owner {closed.owner()}, group {closed.group()}"
    except (OSError, KeyError, NotImplementedError):
        kept = "owned by somebody else"
    return (
        f"may not be written by this user ({closed} is {kept}; its owner can allow a group with "
        f"`chmod -R g+rwX {path.parent}`)"
    )


@contextmanager
def write_locked(path: Path) -> Iterator[None]:
    """Nobody writes to a SQLite file meanwhile, whatever name it is given; readers go on.

    This process must not open the file otherwise meanwhile: closing it would give up the lock.
    """
    with translated(str(path)):
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None
        )
        try:
            connection.execute("BEGIN IMMEDIATE").close()
        except sqlite3.Error as error:
            connection.close()
            raise DBAPIError("BEGIN IMMEDIATE", None, error) from error
    try:
        yield
    finally:
        connection.close()  # which rolls back: nothing was written


MAX_CELL_BYTES = 64 << 20
"""Largest value of a SQLite catalogue: no row of ours comes near, and a wicked one is not read into memory."""


_COMPILED: LRUCache[Any, Any] = LRUCache(500)
"""SQL of statements, for all SQLite files of this process: compiling it again took half the time of opening a store."""


@cache
def _dialect() -> Dialect:
    """One for all SQLite files, as compiled statements belong to it; connecting once asks SQLite for its abilities."""
    engine = create_engine("sqlite://", poolclass=NullPool)
    engine.connect().close()
    return engine.dialect


def sqlite_engine(path: Path, *, mode: str, readonly: bool) -> Engine:
    """The engine of a SQLite file, opened in SQLite's `mode`: durable, and trusting nothing in the file's schema."""
    # Mode rw instead of ro for a reader in a writable folder: it may have to roll back a killed
    # writer's journal.
    uri = f"file:{quote(str(path))}?mode={mode}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri,
            uri=True,
            timeout=engines.BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            for pragma in (
                f"busy_timeout={engines.BUSY_SECONDS * 1000}",
                "trusted_schema=OFF",
                "cell_size_check=ON",
                "foreign_keys=ON",
                "synchronous=EXTRA",
                # macOS: through the drive's cache, where synchronous stops; nothing elsewhere
                "fullfsync=ON",
                *(["query_only=ON"] if readonly else ["journal_mode=DELETE"]),
            ):
                connection.execute(f"PRAGMA {pragma}").close()
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL_BYTES)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        except UnicodeDecodeError:
            connection.close()
            raise _not_utf8(path) from None
        except BaseException:
            connection.close()
            raise
        return connection

    pool = NullPool(connect)  # type: ignore[arg-type]  # sqlite3's connection lacks a type of SQLAlchemy's
    engine = Engine(pool, _dialect(), make_url("sqlite://")).execution_options(
        compiled_cache=_COMPILED
    )

    @event.listens_for(engine, "handle_error")
    def unreadable(context: ExceptionContext) -> None:
        if isinstance(context.original_exception, UnicodeDecodeError):
            raise _not_utf8(path) from None

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        options = conn.get_execution_options()
        conn.exec_driver_sql(
            "BEGIN IMMEDIATE" if WRITE in options or CREATE in options else "BEGIN"
        )

    return engine


def _not_utf8(path: Path) -> DamagedShard:
    # The driver fails so on SQLite's own message about a schema with a broken name in it.
    return DamagedShard(f"{path}: holds text that is not UTF-8: restore the catalogue from a copy")
