"""Shards of the merged store, put together from the stores' arrays as they are and committed through the ledger.

Nothing is recovered and encoded again, so that every label is bit for bit the one that its store has. Two things are
translated: class ids, where two stores keep them in different forms, and the rows of images that crops were mixed with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import DERIVED
from labelstore.codecs import codec_from_record, is_map
from labelstore.codecs.class_ids import decode_ids, encode_ids
from labelstore.commit.block_jobs import BlockSource, LeasedBlock, MadeBlock
from labelstore.commit.label_set_rows import origin_mark, origins
from labelstore.commit.lease_keeper import Progress
from labelstore.commit.staging import BlockArrays
from labelstore.commit.worker import part_of, work_through
from labelstore.sharing.union import NOWHERE, Union, available, layout_of
from labelstore.store import Store
from labelstore.store.group import Group
from labelstore.store.layout import MIX_FIELDS

_ID_ARRAYS = ("class_id", "class_rank", "class_table", "class_escape")


@dataclass(frozen=True, kw_only=True)
class Copying:
    """One process's share of filling the merged store."""

    target: Store
    union: Union
    chosen: Mapping[str, NDArray[np.int16]]
    """Group -> (U, crop shards) which store an image's shard comes from."""

    @cached_property
    def images(self) -> NDArray[np.int64]:
        """(rows,) number of the image in each row of the merged store, -1 where there is none."""
        keys = self.target.image_columns["key"]
        rows = np.full(self.target.num_rows, NOWHERE, np.int64)
        for row in np.flatnonzero(~self.target.free).tolist():
            rows[row] = self.union.place[keys[row]]
        return rows

    def wanted(self, group: str) -> dict[int, tuple[int, ...]]:
        """Image block -> crop shards that the stores have for each of its images."""
        layout = layout_of(self.target, group)
        stores = self.chosen[group]
        there = np.ones((layout.num_blocks * layout.images_per_shard, stores.shape[1]), bool)
        rows = np.flatnonzero(self.images >= 0)
        there[rows] = stores[self.images[rows]] != NOWHERE
        there[rows[self.target.bad[rows]]] = True
        blocks = np.asarray(
            there.reshape(layout.num_blocks, layout.images_per_shard, -1).all(axis=1)
        )
        return {
            block: tuple(np.flatnonzero(blocks[block]).tolist())
            for block in np.flatnonzero(blocks.any(axis=1)).tolist()
        }

    def fill(self, progress: Progress) -> tuple[int, int]:
        """Commit every shard that is wanted and not committed; how many now, and how many were before.

        ConflictError where another process holds one.
        """
        work = {group: self.wanted(group) for group in self.chosen if self._has_labels(group)}
        total = sum(len(shards) for blocks in work.values() for shards in blocks.values())
        passed = done = 0
        for group, blocks in work.items():
            job = _CopiedBlocks(
                store=self.target,
                group=group,
                layout=layout_of(self.target, group),
                blocks=list(blocks),
                map_blocks=map,
                copying=self,
                wanted=blocks,
            )
            done += sum(
                work_through(
                    job,
                    progress=part_of(progress, passed, total),
                    waits=False,
                )
            )
            passed += sum(map(job.size, job.blocks))
        self.target.refresh()
        return done, total - done

    def _has_labels(self, group: str) -> bool:
        """False for a label set of which no store has a shard: how it keeps class ids is not decided."""
        kind, _, name = group.partition("/")
        return (
            kind != "labels"
            or self.target.label_set_row(name).codec.get("class_ids", "") is not None
        )

    def _from(
        self, chosen: NDArray[np.int16], rows: range, images: NDArray[np.int64]
    ) -> NDArray[np.int16]:
        """(n,) the store of each image of a block; -1 for free rows and for what the merged store left out."""
        left_out = self.target.bad[rows.start : rows.stop]
        return np.where(left_out, NOWHERE, chosen[images]).astype(np.int16)

    def copied(self, leased: LeasedBlock, group: str) -> MadeBlock:
        """The missing shards of one block, and the crops that go with them."""
        rows = leased.rows
        images = self.images[rows.start : rows.stop]
        shards, seconds, devices = [], 0.0, set()
        for crop_shard in leased.missing:
            stores = self._from(self.chosen[group][:, crop_shard], rows, images)
            arrays, spent, made_by = self._arrays(group, crop_shard, images, stores)
            shards.append(BlockArrays(group=group, crop_shard=crop_shard, arrays=arrays))
            seconds += spent
            devices |= made_by
        if group.startswith("labels/"):
            shards += self._crops(group, leased.block, images, leased.missing)
        return MadeBlock(
            leased=leased,
            shards=lambda: shards,
            num_images=int(np.count_nonzero(~self.target.bad[rows.start : rows.stop])),
            seconds=seconds,
            device=", ".join(sorted(devices)),
            result=len(leased.missing),
        )

    def _crops(
        self, group: str, block: int, images: NDArray[np.int64], missing: Sequence[int]
    ) -> Iterator[BlockArrays]:
        """Boxes and flips that go with these labels, where the merged store does not have them yet."""
        row = self.target.label_set_row(group.partition("/")[2])
        name = f"crops/{row.plan}"
        if name not in self.chosen_crops:
            return
        committed = self.target.catalogue.ledger.committed(name).get(block, ())
        chosen = self.chosen_crops[name]
        # a label map's only shard belongs to all crops
        shards = range(chosen.shape[1]) if is_map(row.codec) else missing
        for crop_shard in shards:
            rows = self.target.group_specs(name)[1].rows(block)
            stores = self._from(chosen[:, crop_shard], rows, images)
            expected = ~self.target.bad[rows.start : rows.stop]
            if crop_shard in committed or (stores[expected] == NOWHERE).any():
                continue
            arrays, _, _ = self._arrays(name, crop_shard, images, stores)
            yield BlockArrays(group=name, crop_shard=crop_shard, arrays=arrays)

    @cached_property
    def chosen_crops(self) -> dict[str, NDArray[np.int16]]:
        """Group of a plan that stores its crops -> (U, crop shards) which store an image's come from."""
        chosen = {}
        for plan in self.target.catalogue.plans.all():
            if plan.stored:
                there = np.stack(available(self.union, f"crops/{plan.name}"))
                first = np.where(there.any(axis=0), there.argmax(axis=0), NOWHERE)
                chosen[f"crops/{plan.name}"] = first.astype(np.int16)
        return chosen

    def _arrays(
        self, group: str, crop_shard: int, images: NDArray[np.int64], stores: NDArray[np.integer]
    ) -> tuple[dict[str, NDArray[Any]], float, set[str]]:
        """One shard's arrays by field, the seconds that its labels took, and on which devices."""
        arrays = {}
        for spec in self.target.group(group).specs.values():
            shape = (len(images), *spec.shard[1:])
            arrays[spec.name] = np.full(shape, spec.fill, np.dtype(spec.dtype))
        seconds, devices = 0.0, set()
        for number in np.unique(stores[stores != NOWHERE]).tolist():
            source = self.union.stores[number].group(group)
            at = np.flatnonzero(stores == number)
            rows = self.union.rows[number, images[at]]
            height = source.layout.images_per_shard
            for block in np.unique(rows // height).tolist():
                here = rows // height == block
                shard = source.shard(block, crop_shard)
                seconds += shard.seconds * int(here.sum()) / max(shard.num_images, 1)
                devices |= {self._device(number, group, shard.device)} - {""}
                part = self._part(number, group, source, block, crop_shard, rows[here] % height)
                for name, values in part.items():
                    arrays[name][at[here]] = values
        return arrays, seconds, devices

    def _device(self, number: int, group: str, device: str) -> str:
        """As the merged store's ledger says it: there the label sets that masks are made from have other uuids."""
        if not group.startswith("masks/"):
            return device
        marks = self._origin_marks[number]
        return ", ".join(marks.get(uuid, f"{DERIVED}{uuid}") for uuid in origins(device))

    @cached_property
    def _origin_marks(self) -> list[dict[str, str]]:
        """Per store the uuid of each of its label sets -> the mark of that label set in the merged store."""
        mine = {row.name: origin_mark(row) for row in self.target.catalogue.label_sets.all()}
        return [
            {
                row.uuid: mine[row.name]
                for row in store.catalogue.label_sets.all()
                if row.name in mine
            }
            for store in self.union.stores
        ]

    def _part(
        self,
        number: int,
        group: str,
        source: Group,
        block: int,
        crop_shard: int,
        offsets: NDArray[np.int64],
    ) -> dict[str, NDArray[Any]]:
        """Some images of one shard of a store, as the merged store keeps them."""
        per = source.layout.columns_per_shard
        columns = range(crop_shard * per, (crop_shard + 1) * per)
        (found,) = source.parts(block, columns)
        part = {name: values[offsets] for name, values in found.items()}
        if "mix_image" in part:
            part["mix_image"] = self._new_rows(number, part["mix_image"])
        if group.startswith("labels/"):
            self._convert_ids(number, group, part)
        return part

    def _convert_ids(self, number: int, group: str, part: dict[str, NDArray[Any]]) -> None:
        name = group.partition("/")[2]
        held = self.union.stores[number].label_set_row(name)
        wanted = self.target.label_set_row(name)
        form, into = (row.codec.get("class_ids") for row in (held, wanted))
        if form == into or form is None or into is None:
            return
        assert codec_from_record(wanted.codec).takes == "probabilities"
        ids = decode_ids(part, form)
        for array in _ID_ARRAYS:
            part.pop(array, None)
        part.update(encode_ids(ids, into, wanted.num_classes))

    def _new_rows(self, number: int, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows of a store's images in the merged store; the sentinel stays what it is."""
        (mix_image,) = (field for field in MIX_FIELDS if field.name == "mix_image")
        table = self._tables[number]
        missing = rows == mix_image.fill
        moved = table[np.where(missing, 0, rows)]
        return np.where(missing, mix_image.fill, moved).astype(rows.dtype)

    @cached_property
    def _tables(self) -> list[NDArray[np.int64]]:
        """Per store the row in the merged store of each of its rows."""
        row_of = np.zeros(len(self.union.keys), np.int64)
        there = np.flatnonzero(self.images >= 0)
        row_of[self.images[there]] = there
        tables = []
        for store in self.union.stores:
            table = np.zeros(store.num_rows, np.int64)
            keys = store.image_columns["key"]
            for row in np.flatnonzero(~store.free).tolist():
                table[row] = row_of[self.union.place[keys[row]]]
            tables.append(table)
        return tables


@dataclass(kw_only=True)
class _CopiedBlocks(BlockSource):
    """The blocks of one group of the merged store."""

    copying: Copying
    wanted: Mapping[int, Sequence[int]]
    """Image block -> crop shards that the stores have."""

    def missing(self, block: int, committed: Collection[int]) -> Sequence[int]:
        """Those that the stores have and the merged store has not."""
        return [shard for shard in self.wanted[block] if shard not in committed]

    def size(self, block: int) -> int:
        """Shards."""
        return len(self.wanted[block])

    def arrays(self, leased: LeasedBlock) -> MadeBlock:
        """Copy them."""
        return self.copying.copied(leased, self.group)
