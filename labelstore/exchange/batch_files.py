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

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import TopK
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.boxes import BoxShares, box_shares
from labelstore.exchange.inert_values import InertArray, Value, array_of, kind_of
from labelstore.exchange.label_values import class_ids, finite, refuse_twice, truths
from labelstore.exchange.labels import Contents, ImageLabels, softmax
from labelstore.exchange.refusal import Refused, named, read_bytes
from labelstore.exchange.scattered import Piece, Scattered
from labelstore.exchange.source import Stated
from labelstore.exchange.torch_archive import load_torch
from labelstore.images import ImageSource

MAX_JSON_BYTES = 1 << 30
MAX_EPOCHS = 10_000
PERMUTATIONS_PER_EPOCH = (2, 1)
"""That RandomSampler draws: today's, and that of older versions of torch."""

Flavour = Literal["sre2l", "lpld", "lpqld"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a batch file holds, checked for shape."""

    shares: NDArray[Any]
    flips: NDArray[Any] | None
    """None: in its place is a cut-out (ImageNet-21K), and nothing was flipped."""
    values: NDArray[Any]
    """(B, C) outputs, or (B, K) of them."""
    indices: NDArray[Any] | None
    augmented: bool
    """Whether there are parameters of RandAugment or a cut-out."""
    partner: NDArray[np.int64] | None
    share: float
    box: tuple[int, int, int, int] | None


def open_sre2l(source: Path, images: ImageSource, stated: Stated) -> Scattered:
    """SRe2L's labels; the order of the images is found out."""
    return _open(source, images, stated, "sre2l")


def open_lpld(source: Path, images: ImageSource, stated: Stated) -> Scattered:
    """LPLD's labels."""
    return _open(source, images, stated, "lpld")


def open_lpqld(source: Path, images: ImageSource, stated: Stated) -> Scattered:
    """LPQLD's labels."""
    return _open(source, images, stated, "lpqld")


def read_batch(path: Path) -> Batch:
    """One batch file; Refused for anything else."""
    value = load_torch(path)
    if not isinstance(value, (list, tuple)) or not 6 <= len(value) <= 8:
        raise Refused(f"holds {kind_of(value)}, not a list of boxes, flips, mixing and outputs")
    shares = array_of(value[0], "its first entry")
    second = array_of(value[1], "its second entry")
    if shares.ndim != 2 or shares.shape[1] != 4 or shares.dtype.kind != "f" or not len(shares):
        raise Refused(
            f"holds boxes of dtype {shares.dtype} and shape {shares.shape}, not (rows, 4)"
        )
    rows, rest = len(shares), list(value[2:])
    augmented = False
    # RandAugment's parameters stand before the mixing
    quantized = (
        isinstance(rest[-2], InertArray) and rest[-2].array().ndim == 2 and rest[-1] is not None
    )
    if len(rest) - (5 if quantized else 4) == 1:
        augmented = True
        rest = rest[1:]
    if len(rest) != (5 if quantized else 4):
        raise Refused(f"holds {len(value)} entries, which no batch file has")
    indices = array_of(rest[4], "its last entry") if quantized else None
    values = array_of(rest[3], "its outputs")
    if values.ndim != 2 or len(values) != rows or values.shape[1] < 1:
        raise Refused(f"holds {rows} boxes and outputs of shape {values.shape}")
    if indices is not None and (indices.shape != values.shape or indices.dtype.kind not in "iu"):
        raise Refused(
            f"holds outputs of shape {values.shape} and indices of {indices.dtype} {indices.shape}"
        )
    if second.shape != (rows,):
        if second.ndim != 2 or second.shape[0] != rows or second.shape[1] != 7:
            raise Refused(f"holds {rows} boxes and flips of shape {second.shape}")
        augmented = True
    partner, share, box = _mixing(rest[0], rest[1], rest[2], rows)
    return Batch(
        shares=shares,
        flips=second if second.ndim == 1 else None,
        values=values,
        indices=indices,
        augmented=augmented,
        partner=partner,
        share=share,
        box=box,
    )


def _mixing(
    index: Value,
    lam: Value,
    bbox: Value,
    rows: int,
) -> tuple[NDArray[np.int64] | None, float, tuple[int, int, int, int] | None]:
    if index is None:
        if lam is not None or bbox is not None:
            raise Refused("holds a mixing without partners")
        return None, 1.0, None
    partner = array_of(index, "its mixing index")
    if partner.shape != (rows,) or partner.dtype.kind not in "iu":
        raise Refused(f"holds {rows} boxes and mixing partners of {partner.dtype} {partner.shape}")
    if rows > np.iinfo(partner.dtype).max + 1:
        raise Refused(
            f"holds mixing partners of {rows} rows in {partner.dtype}, which cannot tell them apart"
        )
    if not (partner.min() >= 0 and partner.max() < rows):
        raise Refused(f"holds mixing partner {partner.max()} of {rows} rows")
    share = _number(lam, "mixing share")
    if not 0 <= share <= 1:
        raise Refused(f"holds mixing share {share:.4g}, not 0 to 1")
    if bbox is None:
        return partner.astype(np.int64), share, None
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4:
        raise Refused("holds a mixing box that is none")
    top, left, bottom, right = (round(_number(edge, "mixing box")) for edge in bbox)
    if not (0 <= top <= bottom <= 65_534 and 0 <= left <= right <= 65_534):
        raise Refused(f"holds mixing box {top}, {left}, {bottom}, {right}")
    if top == bottom:
        # nothing was pasted; without height, the share would say that the two were blended
        share = 1.0
    return partner.astype(np.int64), share, (top, left, bottom - top, right - left)


def _number(value: Value, what: str) -> float:
    if isinstance(value, InertArray):
        array = value.array()
        if array.size != 1:
            raise Refused(f"holds a {what} of shape {array.shape}")
        value = array.ravel()[0].item()
    if not isinstance(value, (int, float)) or not np.isfinite(value):
        raise Refused(f"holds a {what} that is {kind_of(value)}")
    return float(value)


def _open(source: Path, images: ImageSource, stated: Stated, flavour: Flavour) -> Scattered:
    batches = _list_batches(source, flavour)
    paths = list(batches)
    with named(paths[0]):
        first = read_batch(paths[0])
    if first.augmented and not stated.drop_augmentations:
        raise UsageError(
            f"{paths[0]}: its crops were augmented further (RandAugment or a cut-out), which a store cannot keep: "
            "--drop-augmentations imports the labels without"
        )
    facts: dict[str, Any] = {"batch_size": len(first.shares), "files": len(paths)}
    if flavour == "sre2l":
        order, facts["permutations_per_epoch"] = _sampled(
            batches, images, stated, len(first.shares)
        )
    else:
        order = _listed(source, batches, flavour, images)
    kept = first.indices is not None
    num_classes = None if kept else first.values.shape[1]
    if kept:
        num_classes = stated.need(
            "num_classes", "lpqld files do not say how many classes the teacher has"
        )
    most = int(np.bincount(np.concatenate(list(order.values()))).max())
    if stated.num_crops is not None and stated.num_crops > most:
        raise UsageError(f"--num-crops {stated.num_crops}: these files hold up to {most}")
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


def _listed(
    source: Path, batches: Mapping[Path, tuple[int, int]], flavour: Flavour, images: ImageSource
) -> dict[Path, NDArray[np.int64]]:
    """Image rows of every batch, as the sampler's file says."""
    path = source / f"sampler_indices_{'batch' if flavour == 'lpqld' else 'epoch'}.json"
    with named(path):
        try:
            listed = json.loads(read_bytes(path, MAX_JSON_BYTES))
        except (ValueError, RecursionError):
            raise Refused("is no JSON") from None
        if not isinstance(listed, dict):
            raise Refused("is no table of indices")
        rows = {str(key): _indices(value, len(images)) for key, value in listed.items()}
        if flavour == "lpqld":
            missing = [number for _, number in batches.values() if str(number) not in rows]
            if missing:
                raise Refused(f"lists no indices of batch {missing[0]}")
            return {file: rows[str(number)] for file, (_, number) in batches.items()}
        order: dict[Path, NDArray[np.int64]] = {}
        size: dict[int, int] = {}
        for file, (epoch, number) in batches.items():
            if str(epoch) not in rows:
                raise Refused(f"lists no indices of epoch {epoch}")
            # all batches of an epoch but the last have the size of the first
            if epoch not in size:
                with named(file):
                    size[epoch] = len(read_batch(file).shares)
            order[file] = rows[str(epoch)][number * size[epoch] : (number + 1) * size[epoch]]
        return order


def _indices(value: Value, count: int) -> NDArray[np.int64]:
    if not isinstance(value, list) or not all(type(index) is int for index in value):
        raise Refused("lists indices that are no whole numbers")
    if value and not (min(value) >= 0 and max(value) < count):
        raise Refused(f"names image {max(value)}, and the folder has {count}")
    return np.array(value, np.int64)


def _sampled(
    batches: Mapping[Path, tuple[int, int]], images: ImageSource, stated: Stated, size: int
) -> tuple[dict[Path, NDArray[np.int64]], int]:
    """Image rows of every batch by the sampler's seed, and how many permutations it drew per epoch."""
    size = stated.batch_size or size
    epochs = 1 + max(epoch for epoch, _ in batches.values())
    if epochs > MAX_EPOCHS:
        raise RejectedInput(
            f"{next(iter(batches))}: epoch {epochs - 1}, up to {MAX_EPOCHS} are read"
        )
    scores: dict[int, float] = {}
    orders: dict[int, dict[Path, NDArray[np.int64]]] = {}
    for draws in PERMUTATIONS_PER_EPOCH:
        drawn = permutations(len(images), epochs, stated.sampler_seed, draws)
        orders[draws] = {
            path: drawn[epoch][number * size : (number + 1) * size]
            for path, (epoch, number) in batches.items()
        }
        scores[draws] = _truth(orders[draws], images)
    best = max(scores, key=lambda draws: (scores[draws], draws))
    return orders[best], best


def permutations(count: int, epochs: int, seed: int, draws: int) -> list[NDArray[np.int64]]:
    """What `torch.randperm(count, generator=manual_seed(seed))` gives at every `draws`-th call, without torch.

    A Mersenne Twister, seeded as in 2002; entry i is exchanged with entry i + (a 32-bit word mod count - i).
    """
    twister = np.random.MT19937()
    seeded = np.random.RandomState(seed & 0xFFFF_FFFF)
    twister.state = cast("Any", seeded.get_state(legacy=False))
    left = np.arange(count, 1, -1)
    orders = []
    for _ in range(epochs):
        steps = (twister.random_raw(count - 1).astype(np.int64) % left).tolist()
        order = list(range(count))
        for i, step in enumerate(steps):
            order[i], order[i + step] = order[i + step], order[i]
        orders.append(np.array(order, np.int64))
        twister.random_raw((draws - 1) * (count - 1))
    return orders


def _truth(order: Mapping[Path, NDArray[np.int64]], images: ImageSource) -> float:
    """Mean probability of the images' classes in the last few batches, under one order."""
    found = []
    for path in list(order)[-4:]:
        try:
            with named(path):
                batch = read_batch(path)
                rows = order[path]
                if len(rows) == len(batch.values) and batch.values.shape[1] == len(images.classes):
                    probs = softmax(finite(batch.values, "outputs"), 1.0)
                    found.append(probs[np.arange(len(rows)), images.class_ids[rows]].mean())
        except RejectedInput:
            continue  # named when it is read
    return float(np.mean(found)) if found else 0.0
