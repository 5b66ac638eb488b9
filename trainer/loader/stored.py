"""Passes of stored soft labels, with or without a mask (FKD 3.3, FerKD Eq. 4).

Without a mask the positions of one chunk column are read together: one slab of every image block,
decoded once for all the passes that use it. With a mask, usable crops do not line up in columns; then up to
M positions are read together, in one sequential walk over the store (the draw file).

Labels in the planes are final: re-tempered, and in HARD regions replaced by the softened ground truth,
by the same function and in the same float32 as anywhere else. TOO_HARD, TOO_EASY and MISSING never appear.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.calibration import Region, calibrate_label
from labelstore.codecs.base import SparseLabels
from labelstore.crops import image_streams
from labelstore.errors import IncompleteError, NotGenerated, UsageError
from labelstore.store.slabs import slabs
from trainer.loader.planes import PlaneWriter, Records, as_bytes, make_records, record_dtype
from trainer.loader.source import DrawCounts, ImageTable, PassSource, check_left_out
from trainer.loader.threads import for_each
from trainer.sampler import DrawingOrder, PassSchedule

if TYPE_CHECKING:
    from labelstore.store import LabelSet, Mask


class StoredPasses(PassSource):
    """Every pass of one label set."""

    def __init__(
        self,
        labels: LabelSet,
        *,
        schedule: PassSchedule,
        seed: int = 0,
        mask: Mask | None = None,
        temperature: float = 1.0,
        scratch: Path | None = None,
        attach: Path | None = None,
        allow_empty_images: bool = False,
        allow_incomplete: bool = False,
        threads: int = 2,
    ) -> None:
        """Find the images to draw from; nothing but the mask is read yet.

        Raises IncompleteError for an unfinished label set or mask without `allow_incomplete`, RejectedInput
        where more than 1 % of the images have no usable crop without `allow_empty_images`, UsageError for a
        mask of another plan or a folder in shared memory.
        """
        self.labels, self.mask = labels, mask
        self.schedule, self.temperature, self.threads = schedule, temperature, threads
        self.num_classes = labels.num_classes
        self._kept = labels.codec.kept(labels.num_classes)
        self.order = DrawingOrder(
            seed=seed,
            num_crops=labels.plan.num_crops,
            crops_per_chunk=labels.plan.crops_per_chunk,
        )
        _check_complete(labels, mask, allow_incomplete=allow_incomplete)
        covered = set(labels.blocks) if mask is None else set(labels.blocks) & set(mask.blocks)
        self._blocks = sorted(covered)
        usable = self._usable_counts()
        drawn = np.flatnonzero(usable > 0)
        self.counts = DrawCounts(
            images=len(drawn),
            left_out=int(np.count_nonzero(usable == 0)),
            repeating=int(np.count_nonzero(usable[drawn] < max(schedule.crops_per_pass))),
        )
        check_left_out(
            self.counts,
            allow_empty_images=allow_empty_images,
            why="they were left out as bad when their labels were made"
            if mask is None
            else f"mask {mask.name} discards the rest, choose milder thresholds",
        )
        columns = labels.store.image_columns
        keys = [str(key) for key in columns["key"][drawn]]
        self.table = ImageTable(
            images=drawn,
            keys=keys,
            streams=image_streams(keys),
            sizes=np.stack([columns["height"][drawn], columns["width"][drawn]], 1).astype(np.int64),
            ground_truth=labels.ground_truth[drawn].astype(np.int64),
        )
        self._set_up(record_dtype(self._kept, self.num_classes), scratch=scratch, attach=attach)

    def _usable_counts(self) -> NDArray[np.int64]:
        """(rows,) usable crops of every image row; -1 for rows of blocks that are not covered."""
        present = self.labels.present
        usable = np.full(len(present), -1, np.int64)

        def count(block: int) -> None:
            rows = self.labels.block_rows(block)
            inside = slice(rows.start, rows.stop)
            if self.mask is None:
                usable[inside] = self.order.num_crops
            else:
                usable[inside] = is_usable(self.mask.regions(block)).sum(axis=1)
            usable[inside][~present[inside]] = 0

        for_each(count, self._blocks, threads=self.threads)
        return usable

    def _together(self, position: int) -> int:
        end = self.schedule.epochs
        if self.mask is not None:
            window = self.order.num_crops
            return min(end, (position // window + 1) * window)
        (span,) = self.order.spans(range(position, position + 1))
        return min(end, position + self.order.crops_per_chunk - span.inside.start)

    def _write(self, positions: range) -> None:
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
        streams = self.table.streams[chosen]
        local = self.table.images[chosen] - self.labels.block_rows(block).start
        per = self.order.crops_per_chunk
        if self.mask is None:
            (span,) = self.order.spans(positions)
            drawn = self.order.crops(streams, positions)
            walk: tuple[range | None, ...] = (range(span.column, span.column + 1),)
        else:
            usable = is_usable(self.mask.regions(block))[local]
            drawn = self.order.usable_crops(streams, usable, positions.stop)[:, positions.start :]
            walk = slabs(self.labels)
        records = np.empty((len(positions), len(local)), self.planes.dtype)
        for columns in walk:
            first = 0 if columns is None else columns.start * per
            slab = self._slab_records(block, columns, first)
            width = slab.shape[1]
            at = (drawn - first).T
            if width == self.order.num_crops or self.mask is None:
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
                f"{self.labels.name}; run the same `labelstore create` again to finish them"
            )
        return records

    def _slab_records(self, block: int, columns: range | None, first: int) -> Records:
        """(images of the block, crops) records of some chunk columns, in the order of crops."""
        boxes, flips = self.labels.crops(block, columns)
        labels: SparseLabels | NDArray[np.float32]
        if self._kept is None:
            labels = self.labels.dense(block, columns, self.temperature)
        else:
            labels = self.labels.sparse(block, columns, self.temperature)
        regions: NDArray[np.uint8] | int = int(Region.IMPORTANT)
        if self.mask is not None:
            regions = self.mask.regions(block, columns)
            rows = self.labels.block_rows(block)
            truth = self.labels.ground_truth[rows.start : rows.stop, None]
            epsilon = float(self.mask.rule["epsilon"])
            calibrated = calibrate_label if isinstance(labels, SparseLabels) else calibrate_dense
            labels = calibrated(labels, regions, truth, epsilon, self.num_classes)  # type: ignore[arg-type]
        return make_records(
            self.planes.dtype,
            labels,
            boxes=boxes,
            flips=flips,
            regions=regions,
            crops=np.arange(first, first + boxes.shape[1]),
        )


def is_usable(regions: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which crops are drawn: HARD and IMPORTANT ones."""
    usable: NDArray[np.bool_] = (regions == Region.HARD) | (regions == Region.IMPORTANT)
    return usable


def calibrate_dense(
    labels: NDArray[np.float32],
    regions: NDArray[np.uint8],
    ground_truth: NDArray[Any],
    epsilon: float,
    num_classes: int,
) -> NDArray[np.float32]:
    """`calibrate_label` for dense labels (..., C)."""
    hard = regions == Region.HARD
    truth = np.broadcast_to(ground_truth, regions.shape)[hard]
    softened = np.full((len(truth), num_classes), epsilon / max(num_classes - 1, 1), np.float32)
    softened[np.arange(len(truth)), truth] = 1 - epsilon
    calibrated = labels.copy()
    calibrated[hard] = softened
    return calibrated


def _check_complete(labels: LabelSet, mask: Mask | None, *, allow_incomplete: bool) -> None:
    if mask is not None and mask.row.plan != labels.plan.name:
        raise UsageError(
            f"mask {mask.name} belongs to crop plan {mask.row.plan}, label set {labels.name} to "
            f"{labels.plan.name}: choose a mask of the same plan"
        )
    if allow_incomplete:
        return
    if not labels.is_complete:
        raise IncompleteError(
            f"label set {labels.name} is not finished: run the same `labelstore create` again, or train on "
            "what is there with --allow-incomplete"
        )
    if mask is not None and mask.num_crops < labels.num_crops:
        raise IncompleteError(
            f"mask {mask.name} covers {mask.num_crops} of {labels.num_crops} crops: run `labelstore "
            f"calibrate {labels.store.path} --update --name {mask.name}`, or train on these with "
            "--allow-incomplete"
        )
    if mask is not None and not mask.is_complete:
        raise IncompleteError(
            f"mask {mask.name} does not cover all images: run `labelstore calibrate --update`, or train on "
            "what is there with --allow-incomplete"
        )
