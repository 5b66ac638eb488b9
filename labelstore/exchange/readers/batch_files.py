"""Batch files of SRe2L, LPLD and LPQLD (dataset distillation): one torch.save list per batch of an epoch.

    sre2l, lpld   SOURCE/epoch_E/batch_B.tar: [boxes, flips, mix_index, mix_lam, mix_bbox, outputs (B, C)]
    lpqld         SOURCE/batch_N.tar: the same with [..., values (B, K), indices (B, K)] or outputs at the end, and
                  RandAugment's parameters in the third place where it was used

Boxes are FKD's shares (B, 4), flips bool (B,), outputs before softmax. Crop n of an image is its n-th appearance.
Row r was mixed with row mix_index[r] of its batch: blended, mix_lam of its own, or, where mix_bbox = [x1, y1, x2, y2]
is given, its rows x1 to x2 and columns y1 to y2 were replaced. Which image a row is: LPLD and LPQLD say it in
`sampler_indices_epoch.json` (epoch -> indices) and `sampler_indices_batch.json` (batch -> indices); SRe2L's are
the permutations that torch's RandomSampler draws from one seed. It used to draw one per epoch and now draws
two; which of both it was is told by the outputs, which fit the images' classes only in the right order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import TopK
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.labels import Contents, ImageLabels
from labelstore.exchange.readers.batch_contents import read_batch
from labelstore.exchange.readers.batch_order import Flavour, listed_order, sampled_order
from labelstore.exchange.readers.boxes import BoxShares, box_shares
from labelstore.exchange.readers.label_values import class_ids, finite, refuse_twice, truths
from labelstore.exchange.readers.scattered import Piece, Scattered
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.untrusted.refusal import Refused, named


def open_sre2l(source: Path, images: ImageSource, stated: Stated) -> Scattered:
    """SRe2L's labels; the order of the images is found out."""
    return _open(source, images, stated, "sre2l")


def open_lpld(source: Path, images: ImageSource, stated: Stated) -> Scattered:
    """LPLD's labels."""
    return _open(source, images, stated, "lpld")


def open_lpqld(source: Path, images: ImageSource, stated: Stated) -> Scattered:
    """LPQLD's labels."""
    return _open(source, images, stated, "lpqld")


def _open(source: Path, images: ImageSource, stated: Stated, flavour: Flavour) -> Scattered:
    batches = _list_batches(source, flavour)
    paths = list(batches)
    with named(paths[0]):
        first = read_batch(paths[0])
    if first.augmented and not stated.drop_augmentations:
        raise UsageError(
            f"{paths[0]}: its crops were augmented further (RandAugment or a cut-out), which a store cannot keep: "
            "`drop_augmentations` imports the labels without"
        )
    facts: dict[str, Any] = {"batch_size": len(first.shares), "files": len(paths)}
    if flavour == "sre2l":
        order, facts["permutations_per_epoch"] = sampled_order(
            batches, images, stated, len(first.shares)
        )
    else:
        order = listed_order(source, batches, flavour, images)
    kept = first.indices is not None
    num_classes = None if kept else first.values.shape[1]
    if kept:
        num_classes = stated.need(
            "num_classes", "lpqld files do not say how many classes the teacher has"
        )
    most = int(np.bincount(np.concatenate(list(order.values()))).max())
    if stated.num_crops is not None and stated.num_crops > most:
        raise UsageError(f"`num_crops={stated.num_crops}`: these files hold up to {most}")
    contents = Contents(
        kind="kept-outputs" if kept else "outputs",
        num_crops=stated.num_crops or most,
        k=first.values.shape[1] if kept else None,
        num_classes=None if kept else num_classes,
        dtype=str(first.values.dtype),
        mixed=first.partner is not None,
    )
    reader = _Reader(paths, order, first.partner is not None, first.augmented)
    lost = (
        ["how crops were augmented further (RandAugment or a cut-out)"] if first.augmented else []
    )
    return Scattered(
        source=source,
        images=images,
        pieces=paths,
        read_piece=reader,
        most=most,
        finish=_Finish(
            boxes=box_shares(stated.axis_order, round_boxes=stated.round_boxes),
            num_classes=num_classes or 0,
            kept=kept,
        ),
        contents=contents,
        num_crops=stated.num_crops,
        needs_sizes=first.partner is not None,
        lost=lost,
        facts=facts,
    )


@dataclass(frozen=True)
class _Reader:
    """Batch file -> piece."""

    paths: list[Path]
    order: Mapping[Path, NDArray[np.int64]]
    mixed: bool
    augmented: bool

    def __call__(self, number: int) -> Piece:
        path = self.paths[number]
        batch, rows = read_batch(path), self.order[path]
        if len(rows) != len(batch.shares):
            raise Refused(f"holds {len(batch.shares)} rows, and the sampler drew {len(rows)}")
        if batch.augmented and not self.augmented:
            raise Refused("holds crops that were augmented further, unlike the first file")
        if (batch.partner is not None) is not self.mixed:
            raise Refused("is mixed where the first file is not, or the other way round")
        flips = np.zeros(len(rows), bool) if batch.flips is None else truths(batch.flips, "flips")
        values = {"share": batch.shares, "flip": flips, "value": batch.values}
        if batch.indices is not None:
            values["index"] = batch.indices
        if batch.partner is not None:
            box = (0, 0, 0, 0) if batch.box is None else batch.box
            values |= {
                "mix_image": rows[batch.partner].astype(np.uint32),
                "mix_from_share": batch.shares[batch.partner],
                "mix_flip": flips[batch.partner].astype(np.uint8),
                "mix_share": np.full(len(rows), batch.share, np.float32),
                "mix_box": np.repeat(np.array([box], np.uint16), len(rows), 0),
            }
        return Piece(images=rows, values=values)


@dataclass(frozen=True, kw_only=True)
class _Finish:
    """Rows of one image -> its labels."""

    boxes: BoxShares
    num_classes: int
    kept: bool

    def __call__(
        self,
        values: Mapping[str, NDArray[Any]],
        image: int,
        height: int,
        width: int,
        sizes: NDArray[np.int64],
    ) -> ImageLabels:
        outputs = finite(values["value"], "outputs")
        labels: TopK | NDArray[np.float32] = outputs
        if self.kept:
            labels = _kept_outputs(values["index"], outputs, self.num_classes)
        mixed: dict[str, NDArray[Any]] | None = None
        if "mix_image" in values:
            mixed = {
                name: values[name] for name in ("mix_image", "mix_flip", "mix_share", "mix_box")
            }
            mixed["mix_from"] = np.empty((len(outputs), 4), np.uint16)
            for crop, partner in enumerate(values["mix_image"]):
                mixed["mix_from"][crop] = self.boxes.pixels(
                    values["mix_from_share"][crop : crop + 1], *sizes[partner].tolist()
                )[0]
        return ImageLabels(
            labels=labels,
            boxes=self.boxes.pixels(values["share"], height, width),
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


def _list_batches(source: Path, flavour: Flavour) -> dict[Path, tuple[int, int]]:
    """Batch files in order, with (epoch, number); RejectedInput where there are none."""
    if not source.is_dir():
        raise RejectedInput(f"{source} is not a folder: give the folder of the {flavour} files")
    nested = flavour != "lpqld"
    found: dict[Path, tuple[int, int]] = {}
    folders = {0: source}
    if nested:
        numbers = ((re.fullmatch(r"epoch_(\d{1,6})", p.name), p) for p in source.iterdir())
        folders = {int(match[1]): path for match, path in numbers if match and path.is_dir()}
    for epoch, folder in sorted(folders.items()):
        matches = ((re.fullmatch(r"batch_(\d{1,9})\.tar", p.name), p) for p in folder.iterdir())
        here = {int(match[1]): path for match, path in matches if match}
        for number, path in sorted(here.items()):
            found[path] = (epoch, number)
    if not found:
        where = "epoch_0/batch_0.tar" if nested else "batch_0.tar"
        raise RejectedInput(f"{source} holds no {flavour} file (looked for {where})")
    return found
