"""HALD's files (Cui et al. 2025, dataset distillation): one torch.save list per epoch, of its batches.

    SOURCE/epoch_E.tar                its batches: [boxes, flips, mix_index, mix_lam, mix_bbox, probabilities (B, C)]
    SOURCE/sampler_indices_dict.pt    epoch -> positions of its rows in torchvision's ImageFolder

Entries are SRe2L's (`batch_files`), but for boxes in float16 and, instead of outputs, their softmax at T = 20 in
float16 (relabel_slc.py:252, :278-280). Crop n of an image is the one of the n-th epoch that is there. The sampler's
file says whose row each is, and the labels are asked whether it is these files' and these images'.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.labels import Contents
from labelstore.exchange.readers.batch_contents import Batch, parse_batch
from labelstore.exchange.readers.batch_files import (
    BOXES_LOOKED_AT,
    BatchFinish,
    batch_values,
)
from labelstore.exchange.readers.batch_order import (
    RowsOf,
    box_evidence,
    check_whole,
    label_evidence,
    listed_positions,
    spread,
    truth_evidence,
)
from labelstore.exchange.readers.boxes import BoxShares, box_shares, check_side
from labelstore.exchange.readers.image_orders import CHANCE, Chosen, Evidence, choose, folder_order
from labelstore.exchange.readers.label_values import whole_probabilities
from labelstore.exchange.readers.sources import Piece, Scattered, size_or_none
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.inert_values import kind_of
from labelstore.untrusted.refusal import Refused, named
from labelstore.untrusted.torch_archive import load_torch

TEMPERATURE = 20.0
"""Of the softmax (relabel_slc.py:46)."""
SAMPLER = "sampler_indices_dict.pt"
MAX_EPOCH_BYTES = 4 << 30
"""Of one epoch's file: 2.6 GB for 1.28 million images and 1,000 classes."""


def open_hald(source: Path, images: ImageSource, stated: Stated) -> Scattered:
    """HALD's labels; the sampler's file says which image each row is of."""
    paths = _epoch_files(source)
    rows = _rows(source, paths, images)
    first = next(iter(paths))
    with named(first):
        batches = read_epoch(first)
        _check_rows(batches, rows[first])
    boxes = box_shares(stated.axis_order, round_boxes=stated.round_boxes)
    chosen = _order(source, paths, rows, images, boxes)
    num_classes = batches[0].values.shape[1]
    mixed = batches[0].partner is not None
    if stated.num_crops is not None and stated.num_crops > len(paths):
        raise UsageError(f"`num_crops={stated.num_crops}`: these files hold up to {len(paths)}")
    looked_at = spread(batches, BOXES_LOOKED_AT)
    mix_boxes = [(batch.share, batch.box) for batch in looked_at if batch.box is not None]
    contents = Contents(
        kind="probabilities",
        num_crops=stated.num_crops or len(paths),
        k=None,
        num_classes=num_classes,
        dtype=str(batches[0].values.dtype),
        mixed=mixed,
        temperature=TEMPERATURE,
        input_size=check_side(mix_boxes, stated.input_size, source) if mixed else None,
    )
    return Scattered(
        source=source,
        images=images,
        pieces=list(paths),
        read_piece=_EpochReader(
            paths=list(paths), rows=rows, classes=num_classes, mixed=mixed, side=contents.input_size
        ),
        most=len(paths),
        finish=BatchFinish(boxes=boxes, num_classes=num_classes, kind=contents.kind),
        contents=contents,
        num_crops=stated.num_crops,
        needs_sizes=mixed,
        facts={
            "batch_size": len(batches[0].shares),
            "files": len(paths),
            **chosen.to_record(),
        },
    )


def read_epoch(path: Path) -> list[Batch]:
    """The batches of one epoch's file; Refused for anything else."""
    value = load_torch(path, MAX_EPOCH_BYTES)
    if not isinstance(value, list) or not value:
        raise Refused(f"holds {kind_of(value)}, not a list of batches")
    return [parse_batch(each, "hald") for each in value]


@dataclass(frozen=True, kw_only=True)
class _EpochReader:
    """Epoch's file -> piece."""

    paths: Sequence[Path]
    rows: dict[Path, NDArray[np.int64]]
    classes: int
    mixed: bool
    side: int | None
    """Of the teacher's input, pixels; None: nothing was cut into."""

    def __call__(self, number: int) -> Piece:
        path = self.paths[number]
        batches = read_epoch(path)
        _check_rows(batches, self.rows[path])
        values: dict[str, list[NDArray[Any]]] = {}
        for rows, batch in _with_rows(batches, self.rows[path]):
            if batch.values.shape[1] != self.classes or (batch.partner is not None) != self.mixed:
                raise Refused("has another number of classes than the first file, or other mixing")
            for name, part in batch_values(batch, rows, self.side).items():
                values.setdefault(name, []).append(part)
        return Piece(
            images=self.rows[path],
            values={name: np.concatenate(parts) for name, parts in values.items()},
        )


def _epoch_files(source: Path) -> dict[Path, int]:
    """Files in the order of their epochs, with these; RejectedInput where there are none."""
    if not source.is_dir():
        raise RejectedInput(f"{source} is not a folder: give the folder of the hald files")
    matches = (
        (re.fullmatch(r"epoch_(\d{1,6})\.tar", path.name), path) for path in source.iterdir()
    )
    found = {int(match[1]): path for match, path in matches if match}
    if not found:
        raise RejectedInput(f"{source} holds no hald file (looked for epoch_0.tar)")
    return {path: epoch for epoch, path in sorted(found.items())}


def _rows(
    source: Path, paths: dict[Path, int], images: ImageSource
) -> dict[Path, NDArray[np.int64]]:
    """Image rows of every epoch, as the sampler's file says."""
    path = source / SAMPLER
    with named(path):
        listed = listed_positions(load_torch(path), len(images))
        missing = [epoch for epoch in paths.values() if str(epoch) not in listed]
        if missing:
            raise Refused(f"lists no indices of epoch {missing[0]}")
    for positions in listed.values():
        check_whole(positions, path, images)
    folder = folder_order(images)
    return {file: folder[listed[str(epoch)]] for file, epoch in paths.items()}


def _check_rows(batches: Sequence[Batch], rows: NDArray[np.int64]) -> None:
    held = sum(len(batch.shares) for batch in batches)
    if held != len(rows):
        raise Refused(f"holds {held} rows, and the sampler drew {len(rows)}")


def _with_rows(batches: Sequence[Batch], rows: NDArray[np.int64]) -> list[RowsOf]:
    ends = np.cumsum([len(batch.shares) for batch in batches])
    return list(zip(np.split(rows, ends[:-1]), batches, strict=True))


def _order(
    source: Path,
    paths: dict[Path, int],
    rows: dict[Path, NDArray[np.int64]],
    images: ImageSource,
    boxes: BoxShares,
) -> Chosen:
    """The sampler's order, with what speaks for it; RejectedInput where the labels fit it no better than any other."""
    found: list[list[RowsOf]] = []
    for path in list(paths)[:2]:
        try:
            with named(path):
                batches = read_epoch(path)
                _check_rows(batches, rows[path])
                looked_at = spread(_with_rows(batches, rows[path]))
                for _, batch in looked_at:
                    _probs(batch)
                found.append(looked_at)
        except RejectedInput:
            continue  # named when it is read

    def sizes(at: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([size_or_none(images, row) for row in at.tolist()], np.int64)

    evidence: list[Evidence | None] = []
    if found:
        evidence = [
            None if boxes.round_boxes else box_evidence(found[0], boxes, sizes),
            truth_evidence(found[0], _probs, images),
            label_evidence(found[0], found[1], _probs) if len(found) == 2 else None,
        ]
    chosen = choose(
        {"listed": f"as {SAMPLER} says"},
        lambda name: evidence,
        stated="listed",
        complete=False,
        source=source,
        question="whose rows they are",
    )
    proof = chosen.evidence
    if proof is not None and proof.whole and proof.chance <= CHANCE:
        return replace(chosen, how="proved")
    return chosen


def _probs(batch: Batch) -> NDArray[np.float32]:
    return whole_probabilities(batch.values)
