"""Repair: make the damaged shards again, and only them; what still matches its ledger row is not touched.

Metadata files follow from the catalogue, boxes and flips from the crop plan, masks from labels and
rule, labels from the images and the teacher, whose weights must be the recorded ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.array_spec import EncodedFile
from labelstore.arrays.durable import StagedFiles
from labelstore.calibration import rule_from_record
from labelstore.care.relabelling import Relabeller
from labelstore.care.verification import verify
from labelstore.care.verify_report import Problem, VerifyReport
from labelstore.catalogue.records import ShardRow
from labelstore.commit.block_jobs import BlockSource, LeasedBlock, MadeBlock
from labelstore.commit.label_set_rows import origins, refuse_dropped_origin
from labelstore.commit.lease_keeper import Progress
from labelstore.commit.staging import BlockArrays, StagedBlock
from labelstore.commit.worker import part_of, work_through
from labelstore.cropping.crop_mixing import Partner, planned_mixing
from labelstore.cropping.crop_plan import is_imported
from labelstore.errors import ConflictError, UsageError
from labelstore.images import ImageSource, open_images
from labelstore.labelling.generation_options import GenerationOptions
from labelstore.labelling.image_check import check_images
from labelstore.labelling.label_facts import recorded_images
from labelstore.store import Store
from labelstore.store.group import Group
from labelstore.store.layout import plan_fields
from labelstore.teachers.labeller import Autocast
from labelstore.teachers.teacher import Teacher, load_recorded_teacher

ORDER = {"crops": 0, "labels": 1, "masks": 2}
"""A mask is computed from labels, so these are repaired first."""


@dataclass(frozen=True, kw_only=True)
class RepairedShard:
    """One shard that is whole again (or would be)."""

    group: str
    block: int
    crop_shard: int
    images: tuple[int, int]
    files: tuple[str, ...]
    """Files that were replaced, relative to the array folder."""
    same_bytes: bool
    """True where the new files are bit for bit what was committed."""


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What `repair` did, and what it could not do."""

    metadata: tuple[str, ...]
    """Metadata files that were written again."""
    shards: tuple[RepairedShard, ...]
    remaining: tuple[Problem, ...]
    """What is not repaired: damage of the catalogue itself."""
    seconds: float
    dry_run: bool = False


def repair(
    store: Store,
    *,
    images: str | Path | ImageSource | None = None,
    teacher: str | Teacher | None = None,
    class_map: str | None = None,
    whole_shards: bool = False,
    batch_size: int = 64,
    device: str | None = None,
    autocast: Autocast | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> RepairReport:
    """Make every damaged shard again from `images` and the recorded teacher (or `teacher`, the same weights).

    Images, class map, autocast and crop device are as recorded with the label set where they are not given.

    Only files that no longer match their ledger row are replaced. Where the teacher, on this device, does
    not reproduce a damaged shard's intact files bit for bit, the shard's new and old files would not fit
    each other: ConflictError, unless `whole_shards` allows to replace all of the shard's files.
    ConflictError too while somebody else writes the block, and for other weights; RejectedInput for an
    image that has changed.
    """
    started = time.monotonic()
    identities = {group: store.catalogue.groups.identity(group) for group in store.group_names()}
    report = verify(store, "digests")
    job = _Repair(
        store=store,
        identities=identities,
        report=report,
        images=images,
        teacher=teacher,
        whole_shards=whole_shards,
        dry_run=dry_run,
        progress=progress or (lambda done, total: None),
        note=note,
        options=GenerationOptions(
            class_map=class_map,
            batch_size=batch_size,
            device=device,
            autocast=autocast,
            workers=workers,
        ),
    )
    job.refuse_what_is_missing()
    metadata = job.metadata()
    shards = job.shards()
    left = [problem for problem in report.problems if not problem.key]
    return RepairReport(
        metadata=metadata,
        shards=shards,
        remaining=tuple(left),
        seconds=time.monotonic() - started,
        dry_run=dry_run,
    )


@dataclass(kw_only=True)
class _Repair:
    store: Store
    identities: Mapping[str, str]
    """Per group, when its damage was looked for."""
    report: VerifyReport
    images: str | Path | ImageSource | None
    teacher: str | Teacher | None
    whole_shards: bool
    dry_run: bool
    progress: Progress
    note: Callable[[str], None]
    options: GenerationOptions

    def refuse_what_is_missing(self) -> None:
        """Everything that can be refused is refused before anything is written."""
        if self.report.problems:
            self.store.catalogue.check_writable()
        self._refuse_imported()
        damaged = [shard for shard in self.report.damaged_shards if shard[0].startswith("labels/")]
        self.relabellers: dict[str, Relabeller] = {}
        if not damaged:
            return
        images = self.images
        if images is None:
            try:
                images = recorded_images(self.store)
            except UsageError as error:
                raise UsageError(
                    f"{len(damaged)} damaged shards hold labels, made again from images: {error}"
                ) from None
        folder = open_images(images)
        check_images(self.store, folder, self.note)
        for name in dict.fromkeys(group.partition("/")[2] for group, _, _ in damaged):
            row = self.store.label_set_row(name)
            self.relabellers[name] = Relabeller.of(
                self.store,
                row,
                folder,
                self._teacher(row.teacher),
                replace(self.options, temperature=row.temperature),
            )

    def _refuse_imported(self) -> None:
        """Refuse to repair what came with imported labels: nothing here can make it again."""
        for group, block, _ in self.report.damaged_shards:
            kind, _, name = group.partition("/")
            origin: Mapping[str, Any] = {}
            if kind == "crops" and is_imported(self.store.plan(name).parameters):
                origin = {"format": self.store.plan(name).parameters.get("format")}
            elif kind == "labels":
                origin = self.store.label_set_row(name).facts.get("imported_from", {})
            if origin:
                raise ConflictError(
                    f"image block {block} of {group} was imported from {origin.get('format')} files and cannot be made "
                    "again by a teacher: restore its files from a copy, or import into a new store"
                )

    def _teacher(self, name: str) -> Teacher:
        if isinstance(self.teacher, Teacher):
            return self.teacher
        recorded = self.store.teacher(name)
        return load_recorded_teacher(recorded, self.teacher)

    def metadata(self) -> tuple[str, ...]:
        """Write metadata files again from the catalogue; returns those that were damaged."""
        damaged = tuple(
            problem.key for problem in self.report.problems if problem.key and not problem.group
        )
        if damaged and not self.dry_run:
            self.store.write_metadata(damaged)
        return damaged

    def shards(self) -> tuple[RepairedShard, ...]:
        """Every damaged shard, in the order in which one follows from the other."""
        damaged: dict[str, dict[int, list[int]]] = {}
        for name, block, crop_shard in sorted(
            self.report.damaged_shards, key=lambda s: (ORDER[s[0].partition("/")[0]], *s)
        ):
            damaged.setdefault(name, {}).setdefault(block, []).append(crop_shard)
        if self.dry_run:
            return tuple(
                self._described(name, block, crop_shard)
                for name, blocks in damaged.items()
                for block, crop_shards in blocks.items()
                for crop_shard in crop_shards
            )
        total, repaired = len(self.report.damaged_shards), list[RepairedShard]()
        for name, blocks in damaged.items():
            before = len(repaired)
            job = _DamagedBlocks(
                store=self.store,
                group=name,
                identity=self.identities.get(name),
                layout=self.store.group(name).layout,
                blocks=list(blocks),
                map_blocks=map,
                damaged=blocks,
                repair=self,
            )
            self.progress(before, total)
            found = work_through(
                job,
                progress=part_of(self.progress, before, total),
                waits=False,
            )
            repaired += [shard for shards in found for shard in shards]
        self.store.refresh()
        return tuple(repaired)

    def _described(self, name: str, block: int, crop_shard: int) -> RepairedShard:
        """A damaged shard as it was found."""
        rows = self.store.group(name).layout.rows(block)
        return RepairedShard(
            group=name,
            block=block,
            crop_shard=crop_shard,
            images=(rows.start, rows.stop - 1),
            files=tuple(
                p.key
                for p in self.report.problems
                if (p.group, p.block, p.crop_shard) == (name, block, crop_shard)
            ),
            same_bytes=False,
        )

    def arrays(
        self, group: Group, row: ShardRow, alive: Callable[[], object]
    ) -> dict[str, NDArray[Any]]:
        """Return the arrays of a shard."""
        kind, _, name = group.name.partition("/")
        if kind == "crops":
            return self._crops(group, name, row)
        if kind == "masks":
            return self._regions(group, name, row)
        return self.relabellers[name].arrays(row.block, row.crop_shard, alive)

    def files(
        self, group: Group, row: ShardRow, arrays: Mapping[str, NDArray[Any]]
    ) -> tuple[list[EncodedFile], set[str], RepairedShard]:
        """A shard's new files, the keys of those that are written or removed, and what is told of it."""
        specs, index = list(group.specs.values()), (row.block, row.crop_shard)
        problems = self.store.arrays.verify(specs, index, row.files, "digest")
        damaged = {problem.key for problem in problems if problem.in_ledger}
        encoded = self.store.arrays.encode_shard(specs, index, arrays)
        new = {file.record.key: file.record.sha256 for file in encoded}
        old = {file.key: file.sha256 for file in row.files}
        others = {
            key for key in (old.keys() | new.keys()) - damaged if new.get(key) != old.get(key)
        }
        if others and not self.whole_shards:
            raise ConflictError(
                f"{self.store.arrays.root / min(others)}: intact, but the teacher does not make it again bit for bit "
                f"here (made on {row.device or 'another device'}), so that new files would not fit it: repair "
                "where it was made, or give `whole_shards` to replace all files of the damaged shard"
            )
        told = replace(
            self._described(group.name, *index),
            files=tuple(sorted(damaged | others)),
            same_bytes=new == old,
        )
        return encoded, damaged | others, told

    # -- what a shard holds ------------------------------------------------------------------------

    def _crops(self, group: Group, plan: str, row: ShardRow) -> dict[str, NDArray[Any]]:
        """Boxes, flips and mixtures, a function of the plan and of what is recorded of each image."""
        layout = group.layout
        rows = layout.rows(row.block)
        known = self.store.image_columns
        # seen when the shard was committed: an image that had no size then was left out
        good = [i for i in rows if not self.store.bad[i] and known["height"][i] > 0]
        first = row.crop_shard * layout.crops_per_shard
        crops = np.arange(first, first + layout.crops_per_shard)
        shape = (len(rows), layout.crops_per_shard)
        made: dict[str, NDArray[Any]] = {
            field.name: np.full((*shape, *field.shape), field.fill, field.dtype)
            for field in plan_fields(self.store.plan(plan).parameters)
        }
        boxes, flips = made["box"], made["flip"]
        if good:
            places = [i - rows.start for i in good]
            boxes[places], flips[places] = self.store.crop_plan(plan).crops_of_images(
                [str(known["key"][i]) for i in good],
                np.stack([known["height"][good], known["width"][good]], axis=1),
                np.broadcast_to(crops, (len(good), len(crops))),
            )
        mixing = planned_mixing(self.store.plan(plan).parameters)
        for image in good:
            if mixing is None:
                break
            at = image - rows.start
            fields = mixing.fields(
                image, str(known["key"][image]), crops, boxes[at], flips[at], self._recorded_image
            )
            for name, values in fields.items():
                made[name][at] = values
        return made

    def _recorded_image(self, row: int) -> Partner | None:
        """Key and size of an image as the catalogue has it; None for one that was left out."""
        known = self.store.image_columns
        if self.store.bad[row]:
            return None
        height, width = int(known["height"][row]), int(known["width"][row])
        if height < 1 or width < 1:
            raise ConflictError(
                f"{known['key'][row]}: crops of a damaged shard are mixed with it, and its size is not recorded yet: "
                "finish the label set first (`labelstore.generate` again)"
            )
        return str(known["key"][row]), height, width

    def _regions(self, group: Group, name: str, row: ShardRow) -> dict[str, NDArray[Any]]:
        """Region codes, a function of the labels that the shard was made from and the rule."""
        mask = self.store.mask(name)
        refuse_dropped_origin(self.store, mask.row)
        made_from = {
            held.name
            for held in self.store.catalogue.label_sets.all()
            if held.uuid in origins(row.device)
        }
        labels = self.store.label_set(
            made_from.pop() if len(made_from) == 1 else mask.row.label_set
        )
        rule = rule_from_record(mask.row.rule)
        layout = group.layout
        first = row.crop_shard * layout.columns_per_shard
        parts = [
            rule.block_regions(labels, row.block, range(column, column + 1))
            for column in range(first, first + layout.columns_per_shard)
        ]
        return {"region": np.concatenate(parts, axis=1)}


@dataclass(kw_only=True)
class _DamagedBlocks(BlockSource):
    """The damaged shards of one group; files that still match their ledger row stay."""

    damaged: Mapping[int, Sequence[int]]
    """Image block -> crop shards."""
    repair: _Repair

    def __post_init__(self) -> None:
        self._repaired: set[int] = set()

    @property
    def most_shards(self) -> int:
        """One more than there can be: blocks that are complete are leased, too."""
        return self.layout.num_crop_shards + 1

    def missing(self, block: int, committed: Collection[int]) -> Sequence[int]:
        """Return the committed shards that are damaged and not repaired yet."""
        return () if block in self._repaired else self.damaged[block]

    def size(self, block: int) -> int:
        """Shards."""
        return len(self.damaged[block])

    def arrays(self, leased: LeasedBlock) -> MadeBlock:
        """Make the damaged shards again."""
        group = self.store.group(self.group)
        group.refresh()
        shards = [
            BlockArrays(
                group=self.group,
                crop_shard=crop_shard,
                arrays=self.repair.arrays(
                    group, group.shard(leased.block, crop_shard), leased.current
                ),
            )
            for crop_shard in leased.missing
        ]
        return MadeBlock(leased=leased, shards=lambda: shards, result=[])

    def stage(self, made: MadeBlock) -> StagedBlock:
        """Write what is to be replaced; what is told of each shard becomes the block's result."""
        assert made.shards is not None
        lease = made.leased.current()
        group, root = self.store.group(self.group), self.store.arrays.root
        rows, removes, staged = [], [], StagedFiles()
        try:
            for shard in made.shards():
                row = group.shard(made.leased.block, shard.crop_shard)
                encoded, keys, told = self.repair.files(group, row, shard.arrays)
                new = {file.record.key: file for file in encoded}
                for key in sorted(keys & new.keys()):
                    staged.stage(root / key, new[key].data)
                removes += [root / key for key in keys - new.keys()]
                rows.append(replace(row, files=tuple(file.record for file in encoded)))
                made.result.append(told)
        except BaseException:
            staged.discard()
            raise
        return StagedBlock(
            lease=lease,
            rows=rows,
            files=staged,
            facts=made.facts,
            replaces=True,
            removes=removes,
        )

    def committed(self, made: MadeBlock) -> None:
        """Its shards are whole."""
        self._repaired.add(made.leased.block)
