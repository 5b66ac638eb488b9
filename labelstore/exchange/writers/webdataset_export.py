"""WebDataset out: tar files of samples, an image's labels under one name, for loaders that stream.

    shard-000000.tar     CLASS/NAME.cls             ground truth, as text
                         CLASS/NAME.json            key, class name, height, width, crop numbers
                         CLASS/NAME.boxes.npy       (m, 4) uint16, top, left, height, width, pixels
                         CLASS/NAME.flips.npy       (m,) uint8
                         CLASS/NAME.class_ids.npy, .probs.npy (m, K), .tail.npy (m,): or .probs.npy or .logits.npy
                         (m, C)
                         CLASS/NAME.JPEG            the image, where it is asked for, with its file's ending
    info.json            shards with samples and bytes, class names, label set, teacher

A sample's name ends at the first dot of the last part, so dots in NAME become "_"; the image's own key is in its .json.
Files of one sample lie together. The bytes depend on nothing but labels, images and options: no times, no owners.
Shards with images are what `--images` of other commands takes. Lost: digests, masks.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs import in_short
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.exported import Export, ExportedBlock, Writer
from labelstore.images import EXTENSIONS, digest, file_finder

SHARD_MB = 256
"""Usual size of a shard, 10^6 bytes."""
MAX_SHARD_MB = 1_000_000
MEGABYTE = 1_000_000
INFO = "info.json"
_TAR_BLOCK = 512
_END = 20 * _TAR_BLOCK
"""A tar file is padded to a record of so many bytes."""


class WebDatasetWriter(Writer):
    """Writes tar files of at most a given size; one sample alone may be larger."""

    form: ClassVar[tuple[str, ...]] = ("images", "shard_mb")

    def __init__(self, place: Path, export: Export) -> None:
        """UsageError for a size that no shard has, RejectedInput for images that are not there."""
        form = export.form
        size = SHARD_MB if form.shard_mb is None else form.shard_mb
        if not 1 <= size <= MAX_SHARD_MB:
            raise UsageError(f"`shard_mb={size}`: a shard has 1 to {MAX_SHARD_MB:,}")
        self.folder, self.export = place, export
        self._most = size * MEGABYTE
        self._image_file = None if form.images is None else file_finder(form.images)
        self._names: set[str] = set()
        self._shards: list[dict[str, Any]] = []
        self._tar: tarfile.TarFile | None = None
        self._bytes = 0

    def write(self, block: ExportedBlock) -> int:
        """The samples of some images; RejectedInput where two would have one name, or an image is not the labelled
        one."""
        before = len(self._shards)
        for at, key in enumerate(block.keys):
            name = sample_name(key)
            if name in self._names:
                raise RejectedInput(
                    f"{key}: WebDataset cuts names at the first dot, and {name} is another image's already: rename one"
                )
            self._names.add(name)
            self._add(name, list(self._entries(block, at)))
        return len(self._shards) - before

    def finish(self) -> int:
        """End the last shard, and say what there is."""
        self._end_shard()
        labels = self.export.labels
        teacher = labels.store.teacher(labels.row.teacher)
        about = {
            "layout": "labelstore-webdataset/1",
            "shards": self._shards,
            "samples": sum(shard["samples"] for shard in self._shards),
            "crops": [self.export.crops.start, self.export.crops.stop - 1],
            "label_set": labels.name,
            "codec": in_short(labels.codec.to_record()),
            "temperature": self.export.temperature,
            "num_classes": labels.num_classes,
            "teacher": {
                "name": teacher.name,
                "source": teacher.source,
                "digest": teacher.digest,
                "input_size": teacher.input_size,
            },
            "class_names": list(labels.store.class_names),
            **labels.outputs.to_record(),
            "output_titles": list(labels.output_titles),
        }
        text = json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        (self.folder / INFO).write_text(text, encoding="utf-8")
        return 1

    def abandon(self) -> None:
        """Close what is open."""
        if self._tar is not None and self._tar.fileobj is not None:
            with contextlib.suppress(OSError):  # it has been said
                self._tar.fileobj.close()
            self._tar = None

    def _entries(self, block: ExportedBlock, at: int) -> Iterator[tuple[str, bytes]]:
        crops, key = self.export.crops, block.keys[at]
        truth = int(block.ground_truth[at])
        names = self.export.labels.store.class_names
        yield "cls", str(truth).encode()
        about = {
            "key": key,
            "class": names[truth] if 0 <= truth < len(names) else None,
            "height": int(block.sides[at, 0]),
            "width": int(block.sides[at, 1]),
            "crops": [crops.start, crops.stop - 1],
        }
        yield "json", json.dumps(about, sort_keys=True, ensure_ascii=False).encode()
        yield "boxes.npy", _npy(block.boxes[at])
        yield "flips.npy", _npy(block.flips[at].astype(np.uint8))
        for name, array in block.label_arrays(self.export).items():
            yield f"{name}.npy" if name == "tail" else f"{name}s.npy", _npy(array[at])
        if self._image_file is not None:
            ending = key.rpartition(".")[2]
            if f".{ending.lower()}" not in EXTENSIONS:
                raise RejectedInput(f"{key}: is not named like an image")
            yield ending, self._image(key, int(block.rows[at]))

    def _image(self, key: str, row: int) -> bytes:
        assert self._image_file is not None
        try:
            file = self._image_file(key)
            data = file.read_bytes()
        except FileNotFoundError:
            raise RejectedInput(
                f"no image {key} in {self.export.form.images}: give what the store was made from"
            ) from None
        except OSError as error:
            raise RejectedInput(f"{key}: {error.strerror}") from None
        if self.export.labels.store.image_digest(row) not in (None, digest(data)):
            raise RejectedInput(f"{file}: is not the image that was labelled")
        return data

    def _add(self, name: str, entries: list[tuple[str, bytes]]) -> None:
        size = sum(_space(f"{name}.{ending}", data) for ending, data in entries)
        if self._tar is None or (self._bytes and self._bytes + size + _END > self._most):
            self._end_shard()
            self._begin_shard()
        assert self._tar is not None
        for ending, data in entries:
            entry = tarfile.TarInfo(f"{name}.{ending}")
            entry.size, entry.mode = len(data), 0o644
            self._tar.addfile(entry, io.BytesIO(data))
        self._bytes += size
        self._shards[-1]["samples"] += 1

    def _begin_shard(self) -> None:
        name = f"shard-{len(self._shards):06d}.tar"
        self._tar = tarfile.open(  # noqa: SIM115 - it stays open until the shard is full
            self.folder / name, "x:", format=tarfile.PAX_FORMAT, encoding="utf-8"
        )
        self._shards.append({"file": name, "samples": 0, "bytes": 0})
        self._bytes = 0

    def _end_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        shard = self._shards[-1]
        shard["bytes"] = (self.folder / shard["file"]).stat().st_size


def sample_name(key: str) -> str:
    """The name that the files of an image's sample begin with.

    >>> sample_name("n01440764/n01440764_18.v2.JPEG")
    'n01440764/n01440764_18_v2'
    """
    path = PurePosixPath(key)
    return str(path.with_name(path.stem.replace(".", "_")))


def _npy(array: NDArray[Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, np.ascontiguousarray(array))
    return data.getvalue()


def _space(name: str, data: bytes) -> int:
    """Bytes of one entry in a tar file, a long or foreign name's own entries included."""
    extra = 0 if name.isascii() and len(name) <= 99 else 2 * _TAR_BLOCK + len(name.encode()) + 64
    blocks = -(-extra // _TAR_BLOCK) + 1 + -(-len(data) // _TAR_BLOCK)
    return blocks * _TAR_BLOCK
