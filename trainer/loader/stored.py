"""Passes of stored soft labels: of one label set or several, with masks or without, in any order (FKD 3.3, FerKD
Eq. 4).

Without anything that picks crops, the positions of one chunk column are read together: one slab of every image block,
decoded once for all the passes that use it. With a mask, a curriculum, a probability range or several teachers crops do
not line up in columns; then up to M positions are read together, in one sequential walk over the store (the draw
file), which is kept for later runs where they share a scratch folder.

Labels in the planes are final: re-tempered, in HARD regions replaced by the softened ground truth, and averaged over
the teachers, by the same functions and in the same float32 as anywhere else. TOO_HARD, TOO_EASY and MISSING never
appear.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.reading_threads import REMOTE_THREADS, for_each
from labelstore.blocks.crop_slab import slabs
from labelstore.calibration import Region
from labelstore.calibration.ensembles import Ensemble, ensemble
from labelstore.codecs import SparseLabels, relative_temperature, widen
from labelstore.cropping.crop_augmentation import planned_augmentation
from labelstore.cropping.crop_plan import image_streams
from labelstore.errors import NotGenerated, UsageError
from labelstore.scratch.room import check_room
from labelstore.store.group import shards_digest
from trainer.curriculum import ranked_crops
from trainer.label_tensors import ground_truth_labels
from trainer.loader.draws import KeptPlanes, draw_folder
from trainer.loader.planes import (
    PlaneFolder,
    PlaneWriter,
    Records,
    as_bytes,
    make_records,
    record_dtype,
)
from trainer.loader.recorded_mixes import Partners, recorded_mixes
from trainer.loader.source import (
    DrawCounts,
    DrawOptions,
    ImageTable,
    PlaneSource,
    check_left_out,
)
from trainer.loader.supervision import (
    Supervision,
    as_far_as_labelled,
    check_complete,
    check_mixed,
)
from trainer.loader.tails import TailFiles, tail_dtype
from trainer.sampler import DrawingOrder, PassSchedule

if TYPE_CHECKING:
    from labelstore.store import LabelSet, Mask

DRAWING_ORDER = 2
"""Version of the drawing order; in version 1 an image could show one crop twice in a batch. A draw file is of one
version."""


class StoredPasses(PlaneSource):
    """Every pass of one label set, or of the mean of several."""

    def __init__(
        self,
        labels: LabelSet | Ensemble,
        *,
        schedule: PassSchedule,
        seed: int = 0,
        mask: Mask | None = None,
        temperature: float | None = None,
        draw: DrawOptions | None = None,
        supervision: Supervision | None = None,
        scratch: Path | None = None,
        keep_draws: float = 0.0,
        attach: Path | None = None,
        threads: int = 2,
    ) -> None:
        """Find the images to draw from; nothing but masks, and probabilities for a range, is read yet.

        `mask` is for a label set; an ensemble has its own. `temperature` T is the one of the teachers' logits; None is
        the T0 at which the labels were made. Crops are left out and ranked by their largest probability at T0 (at T
        where label sets were made at different ones). `keep_draws` gigabytes of draw files are kept in `scratch`.

        With `draw.allow_incomplete` passes draw from what is there, as if there were nothing else: images with labels,
        and, while the growth of a plan is unfinished, the first crops, which all of them have (`labels.num_crops`).

        Raises IncompleteError for an unfinished label set or mask without `allow_incomplete`, RejectedInput
        where more than 1 % of the images have no usable crop without `allow_empty_images`, UsageError for a
        mask of another plan or teacher or of mixed crops, a temperature that the labels do not have or a folder in
        shared memory.
        """
        self.draw, self.supervision = draw or DrawOptions(), supervision or Supervision()
        if isinstance(labels, Ensemble) and mask is not None:
            raise UsageError(
                f"mask {mask.name} beside an ensemble: make the ensemble with its teachers' masks"
            )
        together = labels if isinstance(labels, Ensemble) else ensemble([labels], [mask])
        check_complete(together, allow_incomplete=self.draw.allow_incomplete)
        self.labels = as_far_as_labelled(together)
        remote = any(m.labels.store.is_remote for m in self.labels.members)
        self.schedule, self.threads = schedule, max(threads, REMOTE_THREADS) if remote else threads
        self.num_classes = labels.num_classes
        ground_truth = self.supervision.ground_truth
        if ground_truth is not None:
            self.num_classes = len(labels.store.class_names)
        self.temperature = self.labels.temperature_in_force(temperature)
        made_at = {member.labels.temperature for member in self.labels.members}
        self._ranked_at = self.temperature if len(made_at) > 1 else None
        self._listed = self.labels.listed if ground_truth is None else 1
        tail_classes = self.labels.num_tail_classes if ground_truth is None else 0
        if tail_classes and self._listed is not None:
            self._listed -= tail_classes  # which are in the images' tables
        self.order = DrawingOrder(
            seed=seed,
            num_crops=self.labels.num_crops,
            crops_per_chunk=labels.plan.crops_per_chunk,
            schedule=schedule,
        )
        check_mixed(self.labels)
        self._blocks = list(self.labels.blocks)
        if not self._blocks:
            raise NotGenerated(
                f"no image block is covered by all of {self._members()}: finish them with `labelstore.grow` and "
                f"`labelstore.calibration.update(labelstore.open({str(labels.store.path)!r}), ...)`"
            )
        usable = self._usable_counts()
        drawn = np.flatnonzero(usable > 0)
        self.counts = DrawCounts(
            images=len(drawn),
            left_out=int(np.count_nonzero(usable == 0)),
            repeating=int(np.count_nonzero(usable[drawn] < max(schedule.crops_per_pass))),
        )
        check_left_out(
            self.counts, allow_empty_images=self.draw.allow_empty_images, why=self._why()
        )
        columns = labels.store.image_columns
        keys = [str(key) for key in columns["key"][drawn]]
        self.table = ImageTable(
            images=drawn,
            keys=keys,
            streams=image_streams(keys),
            sizes=np.stack([columns["height"][drawn], columns["width"][drawn]], 1).astype(np.int64),
            ground_truth=self._truth()[drawn].astype(np.int64),
        )
        self.partners = Partners.of(self.labels)
        self.augmentation = planned_augmentation(labels.plan.parameters)
        dtype = record_dtype(
            self._listed,
            self.num_classes,
            mixed=self.partners is not None,
            tailed=tail_classes > 0,
        )
        draws = None
        if self.is_drawn and scratch is not None and attach is None:
            size = schedule.epochs * len(drawn) * dtype.itemsize
            if tail_classes:
                tables = len(drawn) * tail_dtype(tail_classes, self.num_classes).itemsize
                size += self.labels.layout.num_crop_shards * tables
            draws = draw_folder(scratch, self._described(dtype), size=size, keep=keep_draws)
        self._repeated_before = any(
            schedule.shows_twice(int(count), ranked=self.draw.order != "random")
            for count in np.unique(usable[drawn])
        )
        self._set_up(dtype, scratch=scratch, attach=attach, draws=draws)
        if tail_classes:
            folder = replace(
                self.planes,
                prefix="tails",
                dtype=tail_dtype(tail_classes, self.num_classes),
                _open={},
            )
            (member,) = (member.labels for member in self.labels.members)
            self.tails = TailFiles(
                folder=folder,
                temperature=relative_temperature(
                    member.codec, self.temperature, member.temperature
                ),
            )
            self._kept_tails = KeptPlanes(folder) if self._kept_planes is not None else None

    def _truth(self) -> NDArray[np.int32]:
        """(rows,) of every image the output that is its class; its class where that is no output of the labels."""
        labels = self.labels
        if self.supervision.has_own_classes or not labels.outputs_are_classes:
            return labels.ground_truth
        return labels.true_output

    @property
    def is_drawn(self) -> bool:
        """Whether passes are slabs of a draw file and not of the store."""
        several, random = len(self.labels.members) > 1, self.draw.order == "random"
        return several or not random or self._leaves_out or not self.order.keeps_columns

    @property
    def _leaves_out(self) -> bool:
        return self.labels.has_masks or not self.draw.keeps_all

    def _usable(self, block: int) -> NDArray[np.bool_]:
        """(images of the block, M) crops that may be drawn, whether or not the image was left out as bad."""
        usable = self.labels.usable(block)
        if not self.draw.keeps_all:
            low, high = (np.float32(limit) for limit in self.draw.probability_range)
            for columns, inside in self._walk():
                largest = self.labels.max_probability(block, columns, self._ranked_at)
                with np.errstate(invalid="ignore"):
                    usable[:, inside] &= (largest >= low) & (largest <= high)
        return usable

    def _usable_counts(self) -> NDArray[np.int64]:
        """(rows,) usable crops of every image row; -1 for rows of blocks that are not covered."""
        present = self.labels.present
        usable = np.full(len(present), -1, np.int64)

        def count(block: int) -> None:
            rows = self.labels.block_rows(block)
            inside = slice(rows.start, rows.stop)
            usable[inside] = (
                self._usable(block).sum(axis=1) if self._leaves_out else self.order.num_crops
            )
            usable[inside][~present[inside]] = 0

        for_each(count, self._blocks, threads=self.threads)
        usable[self.labels.store.free] = -1  # rows that no image has
        return usable

    def _walk(self) -> list[tuple[range | None, slice]]:
        """Chunk columns to read in turn, with the crops that they are."""
        walk = max((slabs(member.labels) for member in self.labels.members), key=len)
        per = self.order.crops_per_chunk
        return [
            (columns, slice(None))
            if columns is None
            else (columns, slice(columns.start * per, columns.stop * per))
            for columns in walk
        ]

    def _together(self, position: int) -> int:
        end = self.schedule.epochs
        if self.is_drawn:
            window = self.order.num_crops
            return min(end, (position // window + 1) * window)
        (span,) = self.order.spans(range(position, position + 1))
        return min(end, position + self.order.crops_per_chunk - span.inside.start)

    def _has(self, position: int) -> bool:
        return super()._has(position) and all(
            self._has_tails(shard) for shard in self._shards(range(position, position + 1))
        )

    def _has_tails(self, shard: int) -> bool:
        if self.tails is None:
            return True
        return (self._kept_tails or self.tails.folder).has(shard)

    def _shards(self, positions: range) -> range:
        """Crop shards that the crops of these positions can be in."""
        if self.is_drawn:
            return range(self.labels.layout.num_crop_shards)
        per = self.labels.layout.columns_per_shard
        spans = self.order.spans(positions)
        columns = [span.column for span in spans]
        return range(min(columns) // per, max(columns) // per + 1)

    def _write_tails(self, positions: range) -> None:
        """The tables of the images' tails, before the planes that need them."""
        (member, *_) = self.labels.members
        for shard in self._shards(positions):
            if self.tails is None or self._has_tails(shard):
                continue
            folder = self.tails.folder
            check_room(folder.path, len(self.table) * folder.dtype.itemsize)
            with PlaneWriter(folder, range(shard, shard + 1)) as writer:

                def lay_out(
                    block: int,
                    shard: int = shard,
                    writer: PlaneWriter = writer,
                    folder: PlaneFolder = folder,
                ) -> None:
                    rows = self.labels.block_rows(block)
                    first, stop = np.searchsorted(self.table.images, [rows.start, rows.stop])
                    if first < stop:
                        local = self.table.images[first:stop] - rows.start
                        records = np.empty((1, len(local)), folder.dtype)
                        for name, values in member.labels.tail_tables(block, shard).items():
                            records[name] = values[local]
                        writer.write(int(first), records)

                for_each(lay_out, self._blocks, threads=self.threads, stop=self._stop)
            if self._kept_tails is not None:
                self._kept_tails.seal(range(shard, shard + 1))

    def _write(self, positions: range) -> None:
        self._write_tails(positions)
        with PlaneWriter(self.planes, positions) as writer:

            def lay_out(block: int) -> None:
                rows = self.labels.block_rows(block)
                first, stop = np.searchsorted(self.table.images, [rows.start, rows.stop])
                if first < stop:
                    chosen = slice(int(first), int(stop))
                    writer.write(chosen.start, self._block_records(block, chosen, positions))

            for_each(lay_out, self._blocks, threads=self.threads, stop=self._stop)

    def _block_records(self, block: int, chosen: slice, positions: range) -> Records:
        """(positions, images) records of the drawn images of one block."""
        local = self.table.images[chosen] - self.labels.block_rows(block).start
        per = self.order.crops_per_chunk
        drawn = self._drawn(block, chosen, positions)
        walk = [columns for columns, _ in self._walk()]
        if not self.is_drawn:
            (span,) = self.order.spans(positions)
            walk = [range(span.column, span.column + 1)]
        records = np.empty((len(positions), len(local)), self.planes.dtype)
        for columns in walk:
            first = 0 if columns is None else columns.start * per
            slab = self._slab_records(block, columns, first)
            width = slab.shape[1]
            at = (drawn - first).T
            if width == self.order.num_crops or not self.is_drawn:
                # every index is inside; "clip" spares NumPy a second walk to find out
                flat = as_bytes(slab).reshape(-1)
                np.take(flat, at + local * width, out=as_bytes(records), mode="clip")
            else:
                nth, row = np.nonzero((at >= 0) & (at < width))
                as_bytes(records)[nth, row] = as_bytes(slab)[local[row], at[nth, row]]
        if np.isnan(records["probs"][..., 0]).any():
            _, row = np.nonzero(np.isnan(records["probs"][..., 0]))
            raise NotGenerated(
                f"{self.table.keys[chosen.start + int(row[0])]}: some of its crops have no labels in "
                f"{self.labels.name}; run the same `labelstore.generate` again to finish them"
            )
        return records

    def _drawn(self, block: int, chosen: slice, positions: range) -> NDArray[np.intp]:
        """(images, positions) crop numbers of the drawn images of one block."""
        streams = self.table.streams[chosen]
        if not self.is_drawn:
            return self.order.crops(streams, positions)
        local = self.table.images[chosen] - self.labels.block_rows(block).start
        usable = (
            self._usable(block)[local]
            if self._leaves_out
            else np.ones((len(local), self.order.num_crops), bool)
        )
        if self.draw.order == "random":
            return self.order.usable_crops(streams, usable, positions.stop)[:, positions.start :]
        largest = [
            self.labels.max_probability(block, columns, self._ranked_at)[local]
            for columns, _ in self._walk()
        ]
        return ranked_crops(
            np.concatenate(largest, axis=1),
            usable,
            positions,
            self.draw.order,
            schedule=self.schedule,
        )

    def _slab_records(self, block: int, columns: range | None, first: int) -> Records:
        """(images of the block, crops) records of some chunk columns, in the order of crops."""
        boxes, flips = self.labels.crops(block, columns)
        labels: SparseLabels | NDArray[np.float32]
        regions: NDArray[np.uint8] | int
        further: dict[str, NDArray[Any]] = {}
        if self.partners is not None:
            further.update(recorded_mixes(self.labels, block, columns))
        if self.supervision.ground_truth is not None:
            rows = self.labels.block_rows(block)
            truth = self.labels.ground_truth[rows.start : rows.stop, None]
            labels = ground_truth_labels(
                np.broadcast_to(truth, flips.shape), self.num_classes, self.supervision.ground_truth
            )
            regions = int(Region.IMPORTANT)
        elif self.tails is not None:
            labels, regions, further["scale"] = self.labels.tailed(block, columns, self.temperature)
            crops_per_shard = self.labels.layout.crops_per_shard
            further["shard"] = np.arange(first, first + flips.shape[1]) // crops_per_shard
        elif self.supervision.as_outputs:
            (member,) = self.labels.members
            labels, regions = member.labels.raw_outputs(block, columns), int(Region.IMPORTANT)
        else:
            labels, regions = self.labels.labels(block, columns, self.temperature)
        if isinstance(labels, SparseLabels) and self._listed is not None:
            labels = widen(labels, self._listed, self.num_classes)
        return make_records(
            self.planes.dtype,
            labels,
            boxes=boxes,
            flips=flips,
            regions=regions,
            crops=np.arange(first, first + boxes.shape[1]),
            further=further,
        )

    def _members(self) -> str:
        masks = [f"mask {m.mask.name}" for m in self.labels.members if m.mask is not None]
        sets = [f"label set {member.labels.name}" for member in self.labels.members]
        return ", ".join([*sets, *masks])

    def _why(self) -> str:
        """Say why an image may have no usable crop."""
        masks = [member.mask.name for member in self.labels.members if member.mask is not None]
        if masks:
            return f"mask {', '.join(masks)} discards the rest, choose milder thresholds"
        if not self.draw.keeps_all:
            low, high = self.draw.probability_range
            return f"no crop has a largest probability within {low:g} and {high:g}, choose a wider range"
        return "they were left out as bad when their labels were made"

    def drawn_from(self) -> dict[str, Any]:
        """The images, M, and digests of the crops, labels and masks on disk (those of an ensemble in a list)."""
        members, digest = self.labels.members, self._shards_digest
        labels = [digest(f"labels/{member.labels.name}") for member in members]
        masks = [
            None if member.mask is None else digest(f"masks/{member.mask.name}")
            for member in members
        ]
        return {
            **super().drawn_from(),
            "num_crops": self.order.num_crops,
            "crops_per_chunk": self.order.crops_per_chunk,
            **({"drawing_order": DRAWING_ORDER} if self._repeated_before else {}),
            "crops_sha256": digest(f"crops/{self.labels.plan.name}"),
            "labels_sha256": labels if len(labels) > 1 else labels[0],
            **({"masks_sha256": masks if len(masks) > 1 else masks[0]} if any(masks) else {}),
        }

    def _described_passes(self) -> list[tuple[int | None, int]]:
        """(passes, crops per image) in turn; in a random order a longer run of the same passes draws the same at first,
        and how many come last is left out."""
        *before, (number, m) = self.schedule.runs()
        return [*before, (None if self.draw.order == "random" else number, m)]

    def _shards_digest(self, group: str) -> str:
        """Digest of every committed file of a group that labels are drawn from, as the ledger has it."""
        layout = self.labels.layout
        return shards_digest(self.labels.store.catalogue, group, layout.num_crop_shards)

    def _described(self, dtype: np.dtype[np.void]) -> dict[str, Any]:
        """Everything that decides what is in the planes: two runs with equal descriptions draw the same bytes."""
        store, plan, shards = self.labels.store, self.labels.plan, self._shards_digest
        return {
            "format": DRAWING_ORDER,
            "store": store.uuid,
            "plan": {"name": plan.name, "crops": shards(f"crops/{plan.name}"), **plan.parameters},
            "members": [
                {
                    "label_set": member.labels.row.uuid,
                    "labels": shards(f"labels/{member.labels.name}"),
                    "weight": member.weight,
                    "mask": None if member.mask is None else shards(f"masks/{member.mask.name}"),
                    "rule": None if member.mask is None else member.mask.rule,
                }
                for member in self.labels.members
            ],
            "temperature": self.temperature,
            "order": self.draw.order,
            "passes": self._described_passes(),
            "probability_range": list(self.draw.probability_range),
            **(
                {}
                if self.supervision.ground_truth is None
                else {"ground_truth": self.supervision.ground_truth}
            ),
            **({"as_outputs": True} if self.supervision.as_outputs else {}),
            # a curriculum leaves nothing to chance
            "seed": self.order.seed if self.draw.order == "random" else None,
            "num_crops": self.order.num_crops,
            "crops_per_chunk": self.order.crops_per_chunk,
            "images": hashlib.sha256(self.table.images.astype("<i8").tobytes()).hexdigest(),
            "record": str(dtype),
        }
