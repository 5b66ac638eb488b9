"""What an array backend does: it turns one shard into files, and files back into arrays.

Both backends end a file with the index of `sharding` and a chunk's bytes with a checksum, so both are read by position
with the ledger in hand, here: any difference from the ledger is a DamagedShard.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.array_spec import ArraySpec, EncodedFile
from labelstore.arrays.checked_files import check_file, opened, read_chunks
from labelstore.arrays.object_storage import BucketFile, BucketFolder
from labelstore.arrays.shard_files import FileProblem, ShardFile
from labelstore.arrays.sharding import Damage, chunk_numbers
from labelstore.errors import DamagedShard, NotGenerated, StorageError


@dataclass(frozen=True)
class ArrayBackend(ABC):
    """Files of a store's arrays. Knows nothing of leases, ledgers or codecs of labels."""

    name: ClassVar[str]
    """Value of `--backend`: zarr, hdf5."""
    root: Path
    """Folder of the arrays."""
    source: BucketFolder | None = None
    """Where shards are read from instead of `root`, which then holds metadata only."""

    @abstractmethod
    def metadata(
        self,
        specs: Sequence[ArraySpec],
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, bytes]:
        """Every metadata file (key -> bytes) that these arrays need, consolidated metadata included.

        `specs` are *all* arrays of the store; `attributes` are JSON attributes per group path, the root
        being "". Writing the files is the caller's: metadata changes go through the catalogue's intent
        rows.
        """

    @abstractmethod
    def attributes(self, group: str = "") -> dict[str, Any]:
        """Attributes of a group as they lie on disk. DamagedShard if missing or unreadable."""

    @abstractmethod
    def metadata_problem(self, key: str) -> str | None:
        """Return what one metadata file says that this package never writes; None when all is well, or for no file.

        Its digest is looked at elsewhere: this is about stores whose digests were made to match.
        """

    @abstractmethod
    def undescribed(self, specs: Sequence[ArraySpec]) -> dict[str, str]:
        """Metadata files that lack one of these arrays, or give it another shape: key -> what is wrong.

        Other programs then do not see the array, or not all of it; our own reader does.
        """

    @abstractmethod
    def contents_problem(self, record: ShardFile, specs: Sequence[ArraySpec]) -> str | None:
        """Return what a shard's file, whose bytes are the ledger's, holds beside these arrays; None: nothing."""

    @abstractmethod
    def encode_shard(
        self, specs: Sequence[ArraySpec], index: tuple[int, int], arrays: Mapping[str, NDArray[Any]]
    ) -> list[EncodedFile]:
        """All arrays of one shard, encoded in memory; equal arrays give equal bytes.

        `arrays` maps field names to arrays of at most the shard's shape; a shard at the border is padded
        with the sentinel. `index` is (image block, crop shard). Nothing touches the disk. An array that
        may be empty, and is, has no file in the list.
        """

    @abstractmethod
    def file_key(self, spec: ArraySpec, index: tuple[int, int]) -> str:
        """The file of one array in one shard, relative to the array folder."""

    @abstractmethod
    def _first_chunk(self, spec: ArraySpec, record: ShardFile) -> int:
        """Number of the array's first chunk in the file's index."""

    @abstractmethod
    def _checksum(self, chunk: NDArray[np.uint8]) -> int | None:
        """The crc32c of a chunk's bytes as the ledger has it; None where it is not what the chunk ends with."""

    @abstractmethod
    def _decode(self, spec: ArraySpec, chunk: NDArray[np.uint8], out: NDArray[Any]) -> None:
        """Decode the bytes of a chunk into `out`; Damage where they are none of that size."""

    def read(
        self,
        spec: ArraySpec,
        index: tuple[int, int],
        files: Sequence[ShardFile],
        columns: range | None = None,
        *,
        stored_order: bool = False,
    ) -> NDArray[Any]:
        """One array of one shard, in C order: all its crops, or the given chunk columns only.

        With `stored_order` axes lie in memory as they lie on disk, which costs less where only some of a
        row is looked at; the shape is the same.

        `files` are all files of the shard's ledger row; `columns` counts from 0 within the shard.
        Returns (images_per_shard, crops, ...) with padding rows still in it. Every chunk read is checked
        against `files`: missing, short, swapped, stale or flipped bytes raise DamagedShard; no files
        at all, NotGenerated; a disk that refuses, StorageError.
        """
        columns = spec.checked_columns(columns)
        out = spec.empty_columns(columns, stored_order=stored_order)
        key = self.file_key(spec, index)
        record = next((file for file in files if file.key == key), None)
        if record is not None:
            try:
                with self._opened(record) as file:
                    self._read_into(out, spec, record, file, columns)
            except Damage as damage:
                self._refuse(key, spec, index, damage)
            return out
        if not files:
            raise NotGenerated(
                f"{spec.path}: {_place(spec, index)} is not generated; run `labelstore.generate` again"
            )
        if not spec.may_be_empty:
            self._refuse(key, spec, index, "the ledger names the shard but not this file")
        out.fill(spec.fill)
        return out

    def columns(
        self,
        spec: ArraySpec,
        index: tuple[int, int],
        files: Sequence[ShardFile],
        columns: range | None = None,
    ) -> Iterator[NDArray[Any]]:
        """`read` of one chunk column after the other, axes in memory as on disk.

        Memory is used again: an array holds its column until the next one is asked for.
        """
        columns = spec.checked_columns(columns)
        key = self.file_key(spec, index)
        record = next((file for file in files if file.key == key), None)
        recorded = () if record is None else record.chunks.get(spec.path, ())
        if (
            record is None
            or None in recorded
            or not len(recorded) == spec.grid[1] == math.prod(spec.grid)
        ):
            # chunks that are left out, or several in a column
            for column in columns:
                one = range(column, column + 1)
                yield self.read(spec, index, files, one, stored_order=True)
            return
        out = spec.empty_columns(range(1), stored_order=True)
        try:
            with self._opened(record) as file:
                for _, chunk in self._chunks(spec, record, file, columns):
                    assert chunk is not None
                    self._decode(spec, chunk, out)
                    yield out
        except Damage as damage:
            self._refuse(key, spec, index, damage)

    def verify(
        self,
        specs: Sequence[ArraySpec],
        index: tuple[int, int],
        files: Sequence[ShardFile],
        level: Literal["fast", "digest", "deep"] = "digest",
    ) -> list[FileProblem]:
        """Problems with the files of one shard; empty when all is well.

        `fast` looks at presence and size, `digest` also at the SHA-256, `deep` also decodes every chunk.
        """
        problems = []
        records = {record.key: record for record in files}
        first_spec = {self.file_key(spec, index): spec for spec in reversed(specs)}
        for key, record in records.items():
            if key not in first_spec:
                problems.append(
                    FileProblem(key=key, what="the ledger names it, but no array has it")
                )
                continue
            try:
                check_file(self.root / key, record, digest=level != "fast")
            except (Damage, StorageError) as problem:
                problems.append(FileProblem(key=key, what=str(problem)))
        for key in reversed(first_spec):
            if key in records:
                continue
            if (self.root / key).exists():
                what = "exists, but the ledger does not name it"
                problems.append(FileProblem(key=key, what=what, in_ledger=False))
            elif files and not first_spec[key].may_be_empty:
                what = "the ledger names the shard but not this file"
                problems.append(FileProblem(key=key, what=what))
        if level == "deep" and not problems:
            for spec in specs:
                try:
                    self.read(spec, index, files)
                except (DamagedShard, NotGenerated, StorageError) as error:
                    problems.append(FileProblem(key=self.file_key(spec, index), what=str(error)))
        return problems

    def _opened(self, record: ShardFile) -> AbstractContextManager[int | BucketFile]:
        if self.source is not None:
            return self.source.opened(record.key, record)
        return opened(self.root / record.key, record)

    def _read_into(
        self,
        out: NDArray[Any],
        spec: ArraySpec,
        record: ShardFile,
        file: int | BucketFile,
        columns: range,
    ) -> None:
        recorded = record.chunks.get(spec.path, ())
        num_chunks = math.prod(spec.grid)
        if len(recorded) != num_chunks:
            raise Damage(f"has {len(recorded)} chunks in the ledger where {num_chunks} are due")
        places = dict(chunk_numbers(spec, columns))
        for number, chunk in self._chunks(spec, record, file, places):
            if chunk is None:
                out[places[number]] = spec.fill
            else:
                self._decode(spec, chunk, out[places[number]])

    def _chunks(
        self, spec: ArraySpec, record: ShardFile, file: int | BucketFile, numbers: Iterable[int]
    ) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
        """Numbers and checked bytes of some of an array's chunks, None for one that is left out."""
        recorded, first = record.chunks[spec.path], self._first_chunk(spec, record)
        total = sum(map(len, record.chunks.values()))
        wanted = {first + number: recorded[number] for number in numbers}
        for number, chunk in read_chunks(file, record, wanted, total, self._checksum):
            yield number - first, chunk

    def _refuse(self, key: str, spec: ArraySpec, index: tuple[int, int], what: object) -> NoReturn:
        """Raise the DamagedShard for a file, with what repairs it."""
        if self.source is not None:
            where, advice = self.source.url, "upload the file again from the frozen store"
        else:
            store = str(self.root.parent)
            where = str(self.root)
            advice = f"run `labelstore.repair(labelstore.open({store!r}), images=DIR)`"
        raise DamagedShard(f"{where}/{key}: {what}; {_place(spec, index)}; {advice}") from None


def _place(spec: ArraySpec, index: tuple[int, int]) -> str:
    """Which images and crops a shard holds, for messages."""
    block, crop_shard = index
    first = block * spec.shard[0]
    last = min(first + spec.shard[0], spec.shape[0]) - 1
    return f"image block {block} (images {first} to {last}), crop shard {crop_shard}"


def wrong_shape(spec: ArraySpec, found: object) -> str:
    """Say for messages that metadata gives an array another shape."""
    return f"says that {spec.path} has shape {str(found)[:60]}, the catalogue {list(spec.shape)}"
