"""The spool: finished images of an image block that is not committed yet, so that a stop loses seconds.

One append-only file per lease, `spool/LABEL_SET/BLOCK-FENCE.spool`. Each record carries its length and
the CRC-32C of its bytes; a torn last record is ignored. The next holder of the block's lease reads every
spool of the block; after the commit they are removed. A spool is a cache: losing it costs teacher time only.
"""

from __future__ import annotations

import io
import json
import os
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.durable import fsync_folder, storage_errors
from labelstore.catalogue.records import Lease

SYNC_SECONDS = 30.0
"""At most so much teacher time is lost to a power cut; a killed process loses only the image in hand."""

_HEADER = struct.Struct("<II")  # payload bytes, CRC-32C
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """Everything that was learnt about one image: what the spool keeps and a block is assembled from."""

    image: int
    height: int
    width: int
    digest: bytes
    arrays: Mapping[str, NDArray[Any]]
    """box (m, 4), flip (m,), and class_ids, probs, tail (m, ...) or probs (m, C)."""
    first_crop: int = 0
    """The m crops are numbers `first_crop` to M - 1: those before have been committed."""
    seconds: float = 0.0
    """Spent on it by the worker that labelled it."""


class Spool:
    """Appends finished images of one leased block."""

    def __init__(self, folder: Path, lease: Lease) -> None:
        self.path = folder / f"{lease.block}-{lease.fence}.spool"
        with storage_errors(self.path):
            new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            if new:
                fsync_folder(folder.parent)
        self._synced = time.monotonic()

    def append(self, image: LabelledImage) -> None:
        """Write one image; reaches the disk within `SYNC_SECONDS`."""
        payload = _pack(image)
        with storage_errors(self.path):
            self._file.write(_HEADER.pack(len(payload), google_crc32c.value(payload)) + payload)
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self.sync()

    def sync(self) -> None:
        """fsync."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close; the file stays until the block is committed."""
        if not self._file.closed:
            with storage_errors(self.path):
                self.sync()
            self._file.close()


def read_spools(folder: Path, block: int) -> dict[int, LabelledImage]:
    """Images of a block that earlier leases finished: image row -> its labels."""
    found: dict[int, LabelledImage] = {}
    for path in sorted(folder.glob(f"{block}-*.spool")):
        for image in _records(path.read_bytes()):
            found[image.image] = image
    return found


def spooled_crops(folder: Path) -> dict[int, int]:
    """Per block the crops in its spools; reads the heads of records and no labels, so it may count a torn one."""
    found: dict[int, dict[int, int]] = {}
    for path in sorted(folder.glob("*-*.spool")):
        block = path.name.partition("-")[0]
        if not block.isdecimal():
            continue
        try:
            images = dict(_heads(path))
        except OSError:
            continue  # committed and removed meanwhile
        found.setdefault(int(block), {}).update(images)
    return {block: sum(images.values()) for block, images in found.items()}


def remove_spools(folder: Path, block: int) -> None:
    """Drop every spool of a committed block."""
    for path in folder.glob(f"{block}-*.spool"):
        path.unlink(missing_ok=True)


def _pack(image: LabelledImage) -> bytes:
    arrays = {name: np.ascontiguousarray(array) for name, array in image.arrays.items()}
    head = json.dumps(
        {
            "image": image.image,
            "height": image.height,
            "width": image.width,
            "digest": image.digest.hex(),
            "first_crop": image.first_crop,
            "seconds": image.seconds,
            "arrays": [[name, a.dtype.str, a.shape] for name, a in arrays.items()],
        }
    ).encode()
    out = io.BytesIO()
    out.write(_LENGTH.pack(len(head)))
    out.write(head)
    for array in arrays.values():
        out.write(array.tobytes())
    return out.getvalue()


def _records(data: bytes) -> Iterator[LabelledImage]:
    at = 0
    while at + _HEADER.size <= len(data):
        size, checksum = _HEADER.unpack_from(data, at)
        payload = data[at + _HEADER.size : at + _HEADER.size + size]
        if len(payload) < size or google_crc32c.value(payload) != checksum:
            return  # torn by the stop: nothing after it can be trusted
        at += _HEADER.size + size
        try:
            yield _unpack(payload)
        except (ValueError, KeyError, TypeError, struct.error):
            return  # another version's


def _heads(path: Path) -> Iterator[tuple[int, int]]:
    """(image row, crops) of each record of a spool that may be growing."""
    end = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() + _HEADER.size + _LENGTH.size <= end:
            size, _ = _HEADER.unpack(file.read(_HEADER.size))
            following = file.tell() + size
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if following > end or length > size:
                return
            try:
                head = json.loads(file.read(length))
                boxes = next(shape for name, _, shape in head["arrays"] if name == "box")
                yield int(head["image"]), int(boxes[0])
            except (ValueError, KeyError, TypeError, StopIteration):
                return
            file.seek(following)


def _unpack(payload: bytes) -> LabelledImage:
    (length,) = _LENGTH.unpack_from(payload)
    head = json.loads(payload[_LENGTH.size : _LENGTH.size + length])
    at = _LENGTH.size + length
    arrays = {}
    for name, dtype, shape in head["arrays"]:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(payload, dtype, count, at).reshape(shape)
        at += arrays[name].nbytes
    return LabelledImage(
        image=head["image"],
        height=head["height"],
        width=head["width"],
        digest=bytes.fromhex(head["digest"]),
        arrays=arrays,
        first_crop=head.get("first_crop", 0),
        seconds=head.get("seconds", 0.0),
    )
