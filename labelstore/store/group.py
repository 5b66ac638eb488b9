"""Reading one group of arrays (a label set, a crop plan, a mask) by image block and chunk columns."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.array_spec import ArraySpec
from labelstore.arrays.backend import ArrayBackend
from labelstore.catalogue import Catalogue
from labelstore.catalogue.records import ShardRow
from labelstore.errors import ConflictError, DamagedShard, NotGenerated
from labelstore.store.layout import Layout


class Group:
    """The committed shards of one group. Only what the ledger names is ever read.

    The ledger is read once and kept; again where a shard is not in it, or is not what it says: others commit
    and repair meanwhile. `identity` is the catalogue's, read before the arrays were looked up: ConflictError
    where the label set, mask or plan of that name is another one now, or gone.
    """

    def __init__(
        self,
        name: str,
        specs: Sequence[ArraySpec],
        layout: Layout,
        catalogue: Catalogue,
        arrays: ArrayBackend,
        *,
        identity: str,
    ) -> None:
        self.name = name
        self.identity = identity
        self.specs = {spec.name: spec for spec in specs}
        self.per_image = frozenset(spec.name for spec in specs if spec.dimensions[1] != "crop")
        self.layout = layout
        self._catalogue = catalogue
        self._arrays = arrays
        self._shards: dict[tuple[int, int], ShardRow] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the ledger again: other workers may have committed since."""
        with self._catalogue.reading():
            digest = self._catalogue.ledger.digest(self.name)
            rows = {
                (row.block, row.crop_shard): row for row in self._catalogue.ledger.shards(self.name)
            }
        # after the rows: they are then of the group that the arrays are known of
        if self._catalogue.groups.identity(self.name) != self.identity:
            raise ConflictError(
                f"{self.name} was dropped since it was opened here, or created again: open the store again"
            )
        self._shards, self._digest = rows, digest

    def rows(self) -> Sequence[ShardRow]:
        """The ledger's rows as they are now, by (block, crop shard); read again only where something was committed."""
        if self._catalogue.ledger.digest(self.name) != self._digest:
            self.refresh()
        return list(self._shards.values())

    @property
    def blocks(self) -> tuple[int, ...]:
        """Image blocks whose crop shards are all committed."""
        wanted = self.layout.num_crop_shards
        counts = np.zeros(self.layout.num_blocks, np.int64)
        for block, crop_shard in self._shards:
            # a plan that was grown since has more than this layout knows
            if block < len(counts) and crop_shard < wanted:
                counts[block] += 1
        return tuple(np.flatnonzero(counts == wanted).tolist())

    @property
    def covered_shards(self) -> int:
        """Crop shards, counted from the first, that every begun image block has: fewer than all while a plan grows."""
        whole = self.layout.num_crop_shards
        there = np.zeros((self.layout.num_blocks, whole), bool)
        for block, crop_shard in self._shards:
            if block < len(there) and crop_shard < whole:
                there[block, crop_shard] = True
        unbroken = np.logical_and.accumulate(there, axis=1).sum(axis=1)
        return int(min(unbroken[unbroken > 0], default=0))

    def first_crops(self, num_crops: int) -> Group:
        """The group as if there were no crops but its first, a whole number of crop shards."""
        narrowed = copy.copy(self)
        narrowed.layout = replace(self.layout, num_crops=num_crops)
        return narrowed

    def shard(self, block: int, crop_shard: int) -> ShardRow:
        """The ledger row of one shard; NotGenerated where there is none."""
        row = self._shards.get((block, crop_shard))
        if row is None:
            self.refresh()
            row = self._shards.get((block, crop_shard))
        if row is None:
            rows = self.layout.rows(block)
            first = crop_shard * self.layout.crops_per_shard
            raise NotGenerated(
                f"{self.name}: images {rows.start}-{rows.stop - 1}, crops {first}-"
                f"{first + self.layout.crops_per_shard - 1} are not generated yet; "
                "run the same `labelstore.generate` or `labelstore.grow` again to finish them"
            )
        if not row.files:
            raise DamagedShard(
                f"{self.name}: the ledger names shard {crop_shard} of image block {block} and none of its files: "
                "restore the catalogue from a copy"
            )
        return row

    def parts(
        self,
        block: int,
        columns: range | None,
        fields: Sequence[str] | None = None,
        *,
        stored_order: bool = False,
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """The asked fields of one image block, one dictionary per crop shard, padding rows left out.

        `stored_order` is the array backend's: axes in memory as on disk.
        """
        names = tuple(self.specs if fields is None else fields)
        for crop_shard, inside in self.layout.split(columns):
            row = self.shard(block, crop_shard)
            try:
                part = self._read(row, inside, names, stored_order=stored_order)
            except DamagedShard:
                # a long-lived reader: the bytes may be what the ledger says now, after a repair
                self.refresh()
                known, row = row, self.shard(block, crop_shard)
                if row.files == known.files:
                    raise
                part = self._read(row, inside, names, stored_order=stored_order)
            yield part

    def columns(
        self, block: int, columns: range | None, fields: Sequence[str]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """The asked per-crop fields one chunk column after the other, axes in memory as on disk.

        Memory is used again: arrays hold their column until the next one is asked for.
        """
        height = len(self.layout.rows(block))
        for crop_shard, inside in self.layout.split(columns):
            row, done = self.shard(block, crop_shard), inside.start
            index = (block, crop_shard)
            try:
                for arrays in zip(
                    *(
                        self._arrays.columns(self.specs[name], index, row.files, inside)
                        for name in fields
                    ),
                    strict=True,
                ):
                    done += 1
                    yield {name: array[:height] for name, array in zip(fields, arrays, strict=True)}
            except DamagedShard:
                # `parts` looks whether it was repaired meanwhile, and says what is wrong
                first = crop_shard * self.layout.columns_per_shard
                for column in range(first + done, first + inside.stop):
                    one = range(column, column + 1)
                    yield from self.parts(block, one, fields, stored_order=True)

    def read(self, block: int, columns: range | None, field: str) -> NDArray[Any]:
        """One per-crop field of one image block: (images, crops, ...)."""
        parts = [part[field] for part in self.parts(block, columns, [field])]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _read(
        self, row: ShardRow, columns: range, fields: Sequence[str], *, stored_order: bool
    ) -> dict[str, NDArray[Any]]:
        """Fields of one committed shard, all by the same row: a repair may replace every file of it."""
        height = len(self.layout.rows(row.block))
        part: dict[str, NDArray[Any]] = {}
        for name in fields:
            try:
                array = self._arrays.read(
                    self.specs[name],
                    (row.block, row.crop_shard),
                    row.files,
                    None if name in self.per_image else columns,
                    stored_order=stored_order,
                )
            except DamagedShard as error:
                raise DamagedShard(self._name_images(str(error), row.block)) from error
            part[name] = array[:height]
        return part

    def _name_images(self, problem: str, block: int) -> str:
        rows = self.layout.rows(block)
        return f"{problem} (images {rows.start}-{rows.stop - 1} of {self.name})"


def shards_digest(catalogue: Catalogue, group: str, num_crop_shards: int) -> str:
    """SHA-256 (hex) over every committed file of a group's first crop shards, as the ledger has it."""
    digest = hashlib.sha256()
    for row in catalogue.ledger.shards(group):
        if row.crop_shard >= num_crop_shards:
            continue  # of a growth that is not finished
        digest.update(f"{row.block} {row.crop_shard}\n".encode())
        for file in row.files:
            digest.update(f"{file.key} {file.sha256}\n".encode())
    return digest.hexdigest()
