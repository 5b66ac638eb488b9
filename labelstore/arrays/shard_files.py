"""What the ledger says about one file of a committed shard: the word that arrays and catalogue share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


def check_file_keys(keys: Iterable[object]) -> None:
    """ValueError for the first of several keys that is no file's path inside the array folder."""
    for key in keys:
        check_file_key(key)


def check_file_key(key: object) -> str:
    """A file's path inside the array folder, if that is what it is; ValueError otherwise.

    >>> check_file_key("labels/a/probability/c.0.0.0")
    'labels/a/probability/c.0.0.0'
    """
    if not isinstance(key, str) or "\\" in key or "\0" in key:
        raise ValueError(f"{key!r} is not a relative POSIX path")
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"{key!r} is not a relative POSIX path")
    return key


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One file of one shard."""

    key: str
    """POSIX path relative to the array folder."""
    size: int
    """Bytes."""
    sha256: str
    """Hex digest of the whole file."""
    chunks: Mapping[str, tuple[int | None, ...]]
    """Per array path, in C order of the shard's chunk grid: crc32c that ends each inner chunk's bytes, or
    None for a chunk that is empty (all fill)."""


@dataclass(frozen=True, kw_only=True)
class FileProblem:
    """What is wrong with one file of a shard."""

    key: str
    """POSIX path relative to the array folder."""
    what: str
    """What was found, and what the ledger says: "is missing"."""
    in_ledger: bool = True
    """False for a file that exists although no ledger row names it."""
