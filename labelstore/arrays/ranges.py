"""Array files that are read by range from somewhere else than a disk."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from labelstore.shard_files import ShardFile


class RangeReader(Protocol):
    """One file, read piece by piece."""

    def read_range(self, offset: int, size: int) -> bytes:
        """Bytes of the file from `offset` on, fewer only at its end. Raises Damage or StorageError."""


class RangeSource(Protocol):
    """The array folder of a store, elsewhere."""

    url: str
    """For messages."""

    def opened(self, key: str, record: ShardFile) -> AbstractContextManager[RangeReader]:
        """A reader of one file, which is Damage unless it has the recorded size."""
