"""What one batch of SRe2L, LPLD, LPQLD, EDC, G_VBSM or HALD holds (`batch_files`), checked for shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from labelstore.exchange.readers.boxes import mix_box
from labelstore.untrusted.inert_values import InertArray, Value, array_of, kind_of
from labelstore.untrusted.refusal import Refused
from labelstore.untrusted.torch_archive import load_torch

Flavour = Literal["sre2l", "lpld", "lpqld", "edc", "gvbsm", "hald"]
MAX_EPOCH_BYTES = 4 << 30
"""Of one epoch's file of HALD: 2.6 GB for 1.28 million images and 1,000 classes."""


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
    """Whether there are parameters of RandAugment, a cut-out or shuffled patches."""
    partner: NDArray[np.int64] | None
    share: float
    box: tuple[int, int, int, int] | None
    positions: NDArray[np.int64] | None = None
    """(B,) positions of the rows' images in the data set, where the file says them."""


def read_batches(path: Path, flavour: Flavour) -> list[Batch]:
    """The batches of a file, of which HALD's have many and all others one; Refused for anything else."""
    if flavour != "hald":
        return [parse_batch(load_torch(path), flavour)]
    value = load_torch(path, MAX_EPOCH_BYTES)
    if not isinstance(value, list) or not value:
        raise Refused(f"holds {kind_of(value)}, not a list of batches")
    return [parse_batch(batch, flavour) for batch in value]


def parse_batch(value: Value, flavour: Flavour) -> Batch:
    """One batch, out of its file; Refused for anything else."""
    if not isinstance(value, (list, tuple)) or not 6 <= len(value) <= 8:
        raise Refused(f"holds {kind_of(value)}, not a list of boxes, flips, mixing and outputs")
    shares = array_of(value[0], "its first entry")
    second = array_of(value[1], "its second entry")
    if shares.ndim != 2 or shares.shape[1] != 4 or shares.dtype.kind != "f" or not len(shares):
        raise Refused(
            f"holds boxes of dtype {shares.dtype} and shape {shares.shape}, not (rows, 4)"
        )
    rows = len(shares)
    entries = _entries(value, flavour)
    augmented = entries.augmented is not None and not _all_zero(entries.augmented)
    kept = entries.indices
    indices = None if kept is None else array_of(kept, "its indices of outputs")
    values = array_of(entries.values, "its outputs")
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
    partner, share, box = _mixing(*entries.mixing, rows)
    return Batch(
        shares=shares,
        flips=second if second.ndim == 1 else None,
        values=values,
        indices=indices,
        augmented=augmented,
        partner=partner,
        share=share,
        box=box,
        positions=None if entries.positions is None else _positions(entries.positions, rows),
    )


@dataclass(frozen=True, kw_only=True)
class _Entries:
    """The entries of a batch file after boxes and flips, by what they are."""

    mixing: tuple[Value, Value, Value]
    values: Value
    indices: Value = None
    positions: Value = None
    augmented: Value = None
    """Parameters of RandAugment, or how EDC shuffled the image's patches (all zeros: it did not)."""


def _entries(value: Sequence[Value], flavour: Flavour) -> _Entries:
    length, rest = len(value), list(value[2:])
    if flavour in ("edc", "gvbsm"):
        if length != (8 if flavour == "edc" else 7):
            raise Refused(f"holds {length} entries, which no {flavour} file has")
        return _Entries(
            mixing=(rest[0], rest[1], rest[2]),
            values=rest[3],
            positions=rest[4],
            augmented=rest[5] if flavour == "edc" else None,
        )
    # RandAugment's parameters stand before the mixing
    if flavour == "hald" and length != 6:
        raise Refused(f"holds a batch of {length} entries, and HALD's have 6")
    last = rest[-2:]
    quantized = (
        isinstance(last[0], InertArray) and last[0].array().ndim == 2 and last[1] is not None
    )
    needed = 5 if quantized else 4
    augmented = rest.pop(0) if len(rest) == needed + 1 else None
    if len(rest) != needed:
        raise Refused(f"holds {length} entries, which no {flavour} file has")
    return _Entries(
        mixing=(rest[0], rest[1], rest[2]),
        values=rest[3],
        indices=rest[4] if quantized else None,
        augmented=augmented,
    )


def _all_zero(value: Value) -> bool:
    if not isinstance(value, InertArray):
        return False
    array = value.array()
    return array.dtype.kind in "iu" and not array.any()


def _positions(value: Value, rows: int) -> NDArray[np.int64]:
    positions = array_of(value, "its image indices")
    if positions.shape != (rows,) or positions.dtype.kind not in "iu":
        raise Refused(
            f"holds {rows} boxes and image indices of {positions.dtype} {positions.shape}"
        )
    return positions.astype(np.int64)


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
    edges = [round(_number(edge, "mixing box")) for edge in bbox]
    return partner.astype(np.int64), *mix_box(share, edges)


def _number(value: Value, what: str) -> float:
    if isinstance(value, InertArray):
        array = value.array()
        if array.size != 1:
            raise Refused(f"holds a {what} of shape {array.shape}")
        value = array.ravel()[0].item()
    if not isinstance(value, (int, float)) or not np.isfinite(value):
        raise Refused(f"holds a {what} that is {kind_of(value)}")
    return float(value)
