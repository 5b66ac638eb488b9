"""Batch files of SRe2L, LPLD, LPQLD, EDC, G_VBSM and HALD (dataset distillation): torch.save lists, one per batch.

    sre2l, lpld   SOURCE/epoch_E/batch_B.tar: [boxes, flips, mix_index, mix_lam, mix_bbox, outputs (B, C)]
    lpqld         SOURCE/batch_N.tar: the same with [..., values (B, K), indices (B, K)] or outputs at the end, and
                  RandAugment's parameters in the third place where it was used
    gvbsm         as sre2l, and then the positions of the rows' images (B,)
    edc           as gvbsm, and then how the image's patches were shuffled (B, 2, 2), all zeros for not at all
    hald          SOURCE/epoch_E.tar, a list of batches as sre2l's, but for boxes in float16 and, instead of outputs,
                  their softmax at T = 20 in float16 (relabel_slc.py:46, :252, :278-280)

Boxes are FKD's shares (B, 4), flips bool (B,), outputs before softmax. Crop n of an image is its n-th appearance.
Row r was mixed with row mix_index[r] of its batch: blended, mix_lam of its own, or, where mix_bbox = [x1, y1, x2, y2]
is given, its rows x1 to x2 and columns y1 to y2 were replaced. Which image a row is (`batch_order`): EDC and G_VBSM
say it in the file; LPLD, LPQLD and HALD beside it, in `sampler_indices_epoch.json` (epoch -> indices),
`sampler_indices_batch.json` (batch -> indices) and `sampler_indices_dict.pt` (epoch -> indices); SRe2L's are the
permutations that torch's RandomSampler draws from one seed.

EDC and G_VBSM divide boxes by the sides of a tensor (C, H, W) in the wrong order: top and height by W, left and width
by H. On images that are not square only one way gives whole pixels inside the image (`box_axes`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import TopK
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.labels import Contents, ImageLabels, Kind
from labelstore.exchange.readers.batch_contents import Batch, Flavour, read_batches
from labelstore.exchange.readers.batch_order import (
    Batches,
    Rows,
    listed_order,
    positions_in_files,
    proved_order,
    rows_of_positions,
    sampled_order,
    spread,
    with_rows,
)
from labelstore.exchange.readers.boxes import BoxShares, MixBox, box_shares, check_side
from labelstore.exchange.readers.image_orders import folder_order
from labelstore.exchange.readers.label_values import (
    class_ids,
    finite,
    refuse_twice,
    truths,
    whole_probabilities,
)
from labelstore.exchange.readers.sources import (
    ImageRows,
    Piece,
    Scattered,
    check_folder,
    size_or_none,
)
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.refusal import Refused, named

BOXES_LOOKED_AT = 256
"""Files whose mix boxes say how large the teacher's input was; the others are checked when they are read."""


HALD_TEMPERATURE = 20.0
"""Of the softmax in HALD's files."""


def _open(source: Path, images: ImageSource, stated: Stated, flavour: Flavour) -> Scattered:
    batches = _list_batches(source, flavour)
    paths = list(batches)
    with named(paths[0]):
        in_first = read_batches(paths[0], flavour)
        first = in_first[0]
    if first.augmented and not stated.drop_augmentations:
        raise UsageError(
            f"{paths[0]}: its crops were augmented further (RandAugment, a cut-out or shuffled patches), which a store "
            "cannot keep: `drop_augmentations` imports the labels without"
        )
    facts: dict[str, Any] = {"batch_size": len(first.shares), "files": len(paths)}
    boxes = box_shares(stated.axis_order, round_boxes=stated.round_boxes)
    if flavour == "sre2l":
        order, chosen, facts["batch_size"] = sampled_order(source, batches, images, stated, boxes)
        facts |= chosen.to_record()
    elif flavour in ("lpld", "lpqld"):
        order = listed_order(source, batches, flavour, images, stated)
    elif flavour == "hald":
        order, chosen = proved_order(source, batches, images, boxes)
        facts |= chosen.to_record()
    else:
        order = None
        first_rows = positions_in_files(first, batches, flavour, images)
        if stated.axis_order is None:
            boxes = box_axes(first, first_rows, images, round_boxes=stated.round_boxes)
            facts["axis_order"] = boxes.axis_order
    kept = first.indices is not None
    is_hald = flavour == "hald"
    num_classes = stated.classes("lpqld") if kept else first.values.shape[1]
    epochs = {epoch for epoch, _ in batches.values()}
    # a file that says its rows itself is an epoch's, in which an image comes once
    most = int(np.bincount(np.concatenate(list(order.values()))).max()) if order else len(epochs)
    side = None
    if first.partner is not None:
        looked_at: Sequence[Path | Batch] = in_first if is_hald else paths
        side = mixed_side(spread(looked_at, BOXES_LOOKED_AT), flavour, stated, source)
    contents = Contents(
        kind="kept-outputs" if kept else "probabilities" if is_hald else "outputs",
        num_crops=stated.crops(most),
        k=first.values.shape[1] if kept else None,
        num_classes=None if kept else num_classes,
        dtype=str(first.values.dtype),
        mixed=first.partner is not None,
        temperature=HALD_TEMPERATURE if is_hald else None,
        input_size=side,
    )
    reader = _Reader(
        paths=paths,
        order=order,
        folder=folder_order(images),
        flavour=flavour,
        contents=contents,
        width=first.values.shape[1],
        augmented=first.augmented,
    )
    lost = (
        ["how crops were augmented further (RandAugment, a cut-out or shuffled patches)"]
        if first.augmented
        else []
    )
    return Scattered(
        source=source,
        images=images,
        pieces=paths,
        read_piece=reader,
        most=most,
        finish=BatchFinish(boxes=boxes, num_classes=num_classes, kind=contents.kind),
        contents=contents,
        num_crops=stated.num_crops,
        needs_sizes=first.partner is not None,
        lost=lost,
        facts=facts,
    )


open_sre2l, open_lpld, open_lpqld, open_edc, open_gvbsm, open_hald = (
    partial(_open, flavour=flavour) for flavour in get_args(Flavour)
)


def mixed_side(
    looked_at: Sequence[Path | Batch], flavour: Flavour, stated: Stated, source: Path
) -> int | None:
    """Side of the teacher's input by the mix boxes of some batches, or of files of one (`boxes.check_side`)."""
    boxes: list[MixBox] = []
    for batch in looked_at:
        if isinstance(batch, Path):
            try:
                with named(batch):
                    (batch,) = read_batches(batch, flavour)
            except RejectedInput:
                continue  # named when it is read
        if batch.box is not None:
            boxes.append((batch.share, batch.box))
    return check_side(boxes, stated.input_size, source)


def box_axes(
    batch: Batch, rows: NDArray[np.int64], images: ImageSource, *, round_boxes: bool
) -> BoxShares:
    """The way to divide boxes by the sides of their images that fits more of a batch; as FKD does on square images.

    UsageError where both fit equally well.
    """
    sides = np.array([size_or_none(images, row) for row in rows.tolist()], np.int64)
    ways = [BoxShares(axis_order=order, round_boxes=round_boxes) for order in ("sides", "swapped")]
    fitting = [int(np.trace(way.fits(batch.shares, sides))) for way in ways]
    if fitting[0] == fitting[1] and (sides[:, 0] != sides[:, 1]).any():
        raise UsageError(
            f"boxes fit {fitting[0]} of {len(rows)} images whichever way they are divided by width and height: state "
            "axis_order, swapped as the program was released, or sides"
        )
    return ways[int(np.argmax(fitting))]


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Batch file -> piece."""

    paths: list[Path]
    order: Rows | None
    """None: each file says its own."""
    folder: NDArray[np.int64]
    """Image row of each position."""
    flavour: Flavour
    contents: Contents
    width: int
    """Outputs of each row."""
    augmented: bool

    def __call__(self, number: int) -> Piece:
        path = self.paths[number]
        batches = read_batches(path, self.flavour)
        if self.order is not None:
            rows = self.order[path]
        else:
            assert batches[0].positions is not None
            rows = rows_of_positions(batches[0].positions, self.folder)
        parts = []
        for at, batch in with_rows(batches, rows):
            if batch.augmented and not self.augmented:
                raise Refused("holds crops that were augmented further, unlike the first file")
            if (batch.partner is not None) is not self.contents.mixed:
                raise Refused("is mixed where the first file is not, or the other way round")
            if batch.values.shape[1] != self.width:
                raise Refused("has another number of outputs than the first file")
            parts.append(batch_values(batch, at, self.contents.input_size))
        values = {name: [part[name] for part in parts] for name in parts[0]}
        return Piece(
            images=rows, values={name: np.concatenate(each) for name, each in values.items()}
        )


def batch_values(
    batch: Batch, rows: NDArray[np.int64], side: int | None
) -> dict[str, NDArray[Any]]:
    """Return what a batch says of each of its rows, which are those images'; `side` is that of the teacher's input."""
    flips = np.zeros(len(rows), bool) if batch.flips is None else truths(batch.flips, "flips")
    values = {"share": batch.shares, "flip": flips, "value": batch.values}
    if batch.indices is not None:
        values["index"] = batch.indices
    if batch.partner is not None:
        box = (0, 0, 0, 0) if batch.box is None else batch.box
        if side is not None and max(box[0] + box[2], box[1] + box[3]) > side:
            raise Refused(f"holds a mix box beyond the teacher's input of {side} pixels")
        values |= {
            "mix_image": rows[batch.partner].astype(np.uint32),
            "mix_from_share": batch.shares[batch.partner],
            "mix_flip": flips[batch.partner].astype(np.uint8),
            "mix_share": np.full(len(rows), batch.share, np.float32),
            "mix_box": np.repeat(np.array([box], np.uint16), len(rows), 0),
        }
    return values


@dataclass(frozen=True, kw_only=True)
class BatchFinish:
    """Rows of one image -> its labels."""

    boxes: BoxShares
    num_classes: int
    kind: Kind

    def __call__(self, rows: ImageRows) -> ImageLabels:
        """Labels and crops of an image; Refused where they are none."""
        values = rows.values
        labels: TopK | NDArray[np.float32]
        if self.kind == "probabilities":
            labels = whole_probabilities(values["value"])
        else:
            labels = finite(values["value"], "outputs")
            if self.kind == "kept-outputs":
                labels = _kept_outputs(values["index"], labels, self.num_classes)
        mixed: dict[str, NDArray[Any]] | None = None
        if "mix_image" in values:
            mixed = {
                name: values[name] for name in ("mix_image", "mix_flip", "mix_share", "mix_box")
            }
            shares, sides = values["mix_from_share"], rows.sizes[values["mix_image"]]
            try:
                mixed["mix_from"] = self.boxes.pixels_of_images(shares, sides)
            except Refused:  # one of them is rounded, or is to be named
                boxes = [
                    self.boxes.pixels(s[None], *of.tolist())
                    for s, of in zip(shares, sides, strict=True)
                ]
                mixed["mix_from"] = np.concatenate(boxes)
        return ImageLabels(
            labels=labels,
            boxes=self.boxes.pixels(values["share"], rows.height, rows.width),
            flips=values["flip"],
            mixed=mixed,
        )


def _kept_outputs(indices: NDArray[Any], outputs: NDArray[np.float32], num_classes: int) -> TopK:
    ids = class_ids(indices, num_classes)
    order = np.argsort(-outputs, axis=-1, kind="stable")
    ids = np.take_along_axis(ids, order, -1)
    refuse_twice(ids)
    return TopK(
        class_ids=ids,
        probs=np.take_along_axis(outputs, order, -1),
        tail=np.zeros(len(outputs), np.float32),
    )


def _list_batches(source: Path, flavour: Flavour) -> Batches:
    """Files in order, with (epoch, number); RejectedInput where there are none."""
    check_folder(source, flavour)

    def numbered(folder: Path, pattern: str) -> list[tuple[int, Path]]:
        matches = ((re.fullmatch(pattern, path.name), path) for path in folder.iterdir())
        return sorted((int(match[1]), path) for match, path in matches if match)

    if flavour == "hald":
        batches = {path: (epoch, 0) for epoch, path in numbered(source, r"epoch_(\d{1,6})\.tar")}
    else:
        folders = [(0, source)]
        if flavour != "lpqld":
            folders = [f for f in numbered(source, r"epoch_(\d{1,6})") if f[1].is_dir()]
        batches = {
            path: (epoch, number)
            for epoch, folder in folders
            for number, path in numbered(folder, r"batch_(\d{1,9})\.tar")
        }
    if not batches:
        where = {"hald": "epoch_0.tar", "lpqld": "batch_0.tar"}
        raise RejectedInput(
            f"{source} holds no {flavour} file (looked for {where.get(flavour, 'epoch_0/batch_0.tar')})"
        )
    return batches
