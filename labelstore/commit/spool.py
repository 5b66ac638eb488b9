"""The spool: finished images of an image block that is not committed yet, so that a stop loses seconds.

One append-only file per lease, `spool/LABEL_SET/BLOCK-FENCE.spool`. Each record carries its length, the
CRC-32C of its bytes and the uuid of its label set, since a name may be given again; a torn last record is
ignored. The next holder of the block's lease reads every spool of the block; after the commit they are
removed. A spool is a cache: losing it costs teacher time only.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.durable import fsync_file, fsync_folder, storage_errors
from labelstore.catalogue.records import Lease
from labelstore.errors import RejectedInput

SYNC_SECONDS = 30.0
"""At most so much teacher time is lost to a power cut; a killed process loses only the image in hand."""

MAX_RECORD_BYTES = 1 << 28
"""Largest record of one image (a thousand crops of 60,000 classes); a larger one is labelled again after a stop."""
MAX_HEAD_BYTES = 1 << 16

_HEADER = struct.Struct("<II")  # payload bytes, CRC-32C
_LENGTH = struct.Struct("<I")
_OTHERS = (
    ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error,
)  # fmt: skip
"""What a record that no worker of this version wrote may raise."""


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
    """Appends finished images of one leased block of the label set with this uuid."""

    def __init__(self, folder: Path, lease: Lease, label_set: str) -> None:
        self.path = folder / f"{lease.block}-{lease.fence}.spool"
        self._label_set = label_set
        with storage_errors(self.path):
            new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            _check_folder(folder)
            self._descriptor = _open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            self._size = os.fstat(self._descriptor).st_size
            if new:
                fsync_folder(folder.parent)
        self._synced = time.monotonic()

    def append(self, image: LabelledImage) -> None:
        """Write one image, all of it or nothing; reaches the disk within `SYNC_SECONDS`.

        StorageError where the disk does not take it: what was appended before stays readable.
        """
        payload = _pack(image, self._label_set)
        if len(payload) > MAX_RECORD_BYTES:
            return  # a cache: a stop costs this image's teacher time
        record = _HEADER.pack(len(payload), google_crc32c.value(payload)) + payload
        try:
            if self._descriptor < 0:
                raise OSError(errno.EBADF, "closed after a write that failed")
            try:
                rest = memoryview(record)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except BaseException:
                self._take_back()
                raise
            self._size += len(record)
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self.sync()
        except OSError:
            with storage_errors(self.path):
                raise

    def sync(self) -> None:
        """fsync."""
        fsync_file(self._descriptor)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close; the file stays until the block is committed."""
        if self._descriptor < 0:
            return
        try:
            with storage_errors(self.path):
                self.sync()
        finally:
            self._close()

    def _take_back(self) -> None:
        """Cut a record that did not arrive whole: nothing after it could be read."""
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self._close()  # so that nothing comes after it

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


def read_spools(folder: Path, block: int, label_set: str) -> dict[int, LabelledImage]:
    """Images of a block that earlier leases of the label set with this uuid finished: image row -> its labels.

    What another label set left under the same name, before it was dropped, is passed over. RejectedInput for a link
    or device where the folder or a file should be.
    """
    images: dict[int, LabelledImage] = {}
    for path in _files(folder, f"{block}-*.spool"):
        for image in _records(path, label_set):
            images[image.image] = image
    return images


def spooled_crops(folder: Path, label_set: str | None = None) -> dict[int, int]:
    """Per block the crops in its spools; reads the heads of records and no labels, so it may count a torn one.

    Of the label set with this uuid, or of whichever had the name.
    """
    crops_of: dict[int, dict[int, int]] = {}
    for path in _files(folder, "*-*.spool"):
        block = path.name.partition("-")[0]
        if not block.isdecimal():
            continue
        try:
            images = dict(_heads(path, label_set))
        except OSError:
            continue  # committed and removed meanwhile
        if images:
            crops_of.setdefault(int(block), {}).update(images)
    return {block: sum(images.values()) for block, images in crops_of.items()}


def remove_spools(folder: Path, block: int) -> None:
    """Drop every spool of a committed block, whichever label set of that name it is of."""
    for path in _files(folder, f"{block}-*.spool"):
        path.unlink(missing_ok=True)


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files of a spool by name, none where there is no folder; RejectedInput where it is a link."""
    if not os.path.lexists(folder):
        return []
    _check_folder(folder)
    return sorted(folder.glob(pattern))


def _check_folder(folder: Path) -> None:
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise RejectedInput(f"{folder} is a link, or no folder: remove it, it is not labelstore's")


def _open(path: Path, flags: int) -> int:
    """A descriptor of a plain file that no other name leads to; RejectedInput for anything else."""
    try:
        # not blocking: a pipe would wait for its other end
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise _no_file(path) from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise _no_file(path)
    return descriptor


def _no_file(path: Path) -> RejectedInput:
    return RejectedInput(f"{path} is a link, or no plain file: remove it, it is not labelstore's")


def _pack(image: LabelledImage, label_set: str) -> bytes:
    arrays = {name: np.ascontiguousarray(array) for name, array in image.arrays.items()}
    head = json.dumps(
        {
            "label_set": label_set,
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


def _records(path: Path, label_set: str) -> Iterator[LabelledImage]:
    """Whole records of a spool one by one, of one label set; ends where a stop tore one."""
    with open(_open(path, os.O_RDONLY), "rb") as file:
        end = os.fstat(file.fileno()).st_size
        while file.tell() + _HEADER.size <= end:
            size, checksum = _HEADER.unpack(file.read(_HEADER.size))
            if size > min(MAX_RECORD_BYTES, end - file.tell()):
                return
            payload = file.read(size)
            if len(payload) < size or google_crc32c.value(payload) != checksum:
                return  # torn by the stop: nothing after it can be trusted
            try:
                image = _unpack(payload, label_set)
            except _OTHERS:
                return  # another version's
            if image is not None:
                yield image


def _heads(path: Path, label_set: str | None) -> Iterator[tuple[int, int]]:
    """(image row, crops) of each record of a spool that may be growing."""
    with open(_open(path, os.O_RDONLY), "rb") as file:
        end = os.fstat(file.fileno()).st_size
        while file.tell() + _HEADER.size + _LENGTH.size <= end:
            size, _ = _HEADER.unpack(file.read(_HEADER.size))
            following = file.tell() + size
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if following > end or length > min(size, MAX_HEAD_BYTES):
                return
            try:
                head = json.loads(file.read(length))
                boxes = next(shape for name, _, shape in head["arrays"] if name == "box")
                if label_set is None or head.get("label_set") == label_set:
                    yield int(head["image"]), int(boxes[0])
            except (*_OTHERS, StopIteration):
                return
            file.seek(following)


def _unpack(payload: bytes, label_set: str) -> LabelledImage | None:
    """A record's image; None where it is another label set's."""
    (length,) = _LENGTH.unpack_from(payload)
    if length > MAX_HEAD_BYTES:
        raise ValueError(length)
    head = json.loads(payload[_LENGTH.size : _LENGTH.size + length])
    if head.get("label_set") != label_set:
        return None
    at = _LENGTH.size + length
    arrays = {}
    for name, dtype, shape in head["arrays"]:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(payload, dtype, count, at).reshape(shape)
        at += arrays[name].nbytes
    return LabelledImage(
        image=int(head["image"]),
        height=int(head["height"]),
        width=int(head["width"]),
        digest=bytes.fromhex(head["digest"]),
        arrays=arrays,
        first_crop=int(head.get("first_crop", 0)),
        seconds=float(head.get("seconds", 0.0)),
    )
