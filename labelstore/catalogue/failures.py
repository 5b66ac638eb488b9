"""What a database says when it fails, as one of the package's own errors in one line."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from labelstore.errors import (
    ConflictError,
    DamagedShard,
    LabelStoreError,
    StorageError,
    StoreNotFound,
)

_SQLITE_BUSY = {"SQLITE_BUSY", "SQLITE_LOCKED"}
_SQLITE_STORAGE = {
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_READONLY",
    "SQLITE_CANTOPEN",
    "SQLITE_PERM",
    "SQLITE_AUTH",
    "SQLITE_NOLFS",
    "SQLITE_PROTOCOL",
    "SQLITE_NOMEM",
}

_LOCKED = "55P03"
"""Lock not available in time."""
_SERIALIZATION = {"40001", "40P01"}
_SQLSTATE: dict[str, type[LabelStoreError]] = {
    "42P01": StoreNotFound,  # no such table
    "3D000": StoreNotFound,  # no such database
    "3F000": StoreNotFound,  # no such schema
    _LOCKED: ConflictError,
    "42501": StorageError,  # insufficient privilege
    "XX001": DamagedShard,  # data corrupted
    "XX002": DamagedShard,  # index corrupted
} | dict.fromkeys(_SERIALIZATION, ConflictError)

_ADVICE: dict[type[LabelStoreError], str] = {
    ConflictError: "other workers kept it busy; try again",
    DamagedShard: "the catalogue is damaged; restore it from a copy",
    StorageError: "the catalogue could not be read or written; nothing was committed",
    StoreNotFound: "no catalogue there; check the path or run `labelstore.create`",
}


def is_serialization_failure(error: ConflictError) -> bool:
    """True where PostgreSQL asks for the transaction to be run again."""
    return _sqlstate(error.__cause__) in _SERIALIZATION


def is_busy(error: ConflictError) -> bool:
    """True where another transaction held the catalogue for longer than this one waits."""
    cause = error.__cause__
    if not isinstance(cause, DBAPIError):
        return False
    return isinstance(cause.orig, sqlite3.Error) or _sqlstate(cause) == _LOCKED


def _sqlstate(error: BaseException | None) -> str:
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def _kind(error: DBAPIError) -> type[LabelStoreError]:
    original = error.orig
    if isinstance(original, sqlite3.Error):
        # Extended codes: SQLITE_IOERR_FSYNC, SQLITE_BUSY_SNAPSHOT, ...
        name = "_".join(getattr(original, "sqlite_errorname", "").split("_")[:2])
        if name in _SQLITE_BUSY:
            return ConflictError
        if name in _SQLITE_STORAGE:
            return StorageError
        # The SQL is our own, so whatever else SQLite objects to (no such table, not UTF-8, a key
        # that is there twice) is a file that does not hold what was written.
        return DamagedShard
    sqlstate = _sqlstate(error)
    return _SQLSTATE.get(
        sqlstate, DamagedShard if sqlstate.startswith(("22", "23", "42")) else StorageError
    )


@contextmanager
def translated(name: str | None) -> Iterator[None]:
    """Turn the driver's errors into ours, naming the database."""
    try:
        yield
    except DBAPIError as error:
        raise translation(name, error) from error


def translation(name: str | None, error: DBAPIError) -> LabelStoreError:
    """The driver's error as one of ours, naming the database."""
    kind = _kind(error)
    if getattr(error.orig, "sqlite_errorname", "") == "SQLITE_READONLY_ROLLBACK":
        return kind(
            f"{name}: a process that was killed left a transaction that must be undone, and this user may not write "
            "there: let somebody who may run `labelstore info` on the store once, which undoes it"
        )
    said = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
    return kind(f"{name}: {said[0]}: {_ADVICE[kind]}")
