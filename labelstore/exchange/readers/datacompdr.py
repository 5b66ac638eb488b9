"""DataCompDR (Vasu et al. 2024, MobileCLIP): embeddings of an ensemble of CLIP teachers, M crops per image.

SOURCE is a folder of WebDataset shards, one shard, or a folder with the same files unpacked. An image's sample:

    KEY.npz         image_emb (M, D) and text_emb (1 + captions, D), float32; or
    KEY.pth.gz      the same as tensors of torch.save, bfloat16, in gzip
    KEY.paug.json   {"param_aug": P}, P a list of M crops, or that list as a JSON text
    KEY.json        uid and SHA-256 of the image; KEY.syn.json, KEY.url.txt: captions, and where the image was

A crop lists the parameters of the transformations that have any, in a fixed order (`Compose.compress` of
apple/ml-mobileclip): [top, left, height, width] of the random resized crop in pixels of the image; true or false where
flips are enabled; pairs [operation, magnitude] of RandAugment and [x, y, height, width] of random erasing, null where
these were skipped. A row of `image_emb` has the teachers' embeddings one behind the other, each of unit length.

KEY is the name of the image's file up to its first dot: no order has to be guessed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput, StorageError, UsageError
from labelstore.exchange.labels import Contents, ImageLabels
from labelstore.exchange.readers.boxes import pixel_box, pixel_boxes
from labelstore.exchange.readers.label_values import finite
from labelstore.exchange.readers.ml_dr import AUGMENTING, enabled_transformations
from labelstore.exchange.readers.sources import (
    LOOKED_AT,
    MAX_LISTED,
    ImageFiles,
    first_contents,
)
from labelstore.exchange.readers.tables import MAX_INFLATED, read_npy
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource
from labelstore.images.tar_members import members
from labelstore.images.tar_shards import TarredImage
from labelstore.untrusted.inert_values import Value, array_of
from labelstore.untrusted.refusal import GZIP, Refused, inflated, named, read_bytes, shown
from labelstore.untrusted.stored_zip import ZIP_MAGIC, ZipEntries
from labelstore.untrusted.torch_archive import parse_torch

ARRAYS = ("npz", "pth.gz")
"""Endings of a sample's embeddings; MobileCLIP's loader too reads the first where both are there."""
CROPS, ABOUT, CONFIG = "paug.json", "json", "config.json"
MAX_ARRAYS_BYTES, MAX_JSON_BYTES = 64 << 20, 1 << 20
UNIT = 0.02
"""How far a sum of squared unit lengths may be from a whole number: values may have been bfloat16."""
LOST = ("embeddings of the captions (text_emb)", "synthetic captions", "uid and url")

Parts: TypeAlias = Mapping[str, "Path | TarredImage"]
"""The files of a sample by their endings."""


def open_datacompdr(source: Path, images: ImageSource, stated: Stated) -> ImageFiles:
    """DataCompDR's embeddings for the images of a folder."""
    samples = _samples(source)
    names, unmatched = _names(samples, images, source)
    parts = [samples.get(name) for name in names]
    looked_at: list[Sample] = []

    def look(path: Path) -> Contents:
        looked_at.append(read_sample(samples[path.relative_to(source).as_posix()]))
        m, d = looked_at[-1].embeddings.shape
        return Contents(kind="embedding", num_crops=m, num_classes=d, dtype="float32")

    first = first_contents(source, [name for name in names if name in samples], look)
    size, configured = _configured(source)
    further = sorted(configured | looked_at[-1].augmented)
    if further and not stated.drop_augmentations:
        raise UsageError(
            f"{source}: its crops were augmented further ({' and '.join(further)}), which a store cannot keep: "
            "`drop_augmentations` imports the labels without"
        )
    if size is not None and stated.input_size not in (None, size):
        raise UsageError(
            f"`input_size={stated.input_size}`: {CONFIG} says {size} pixels; leave it out"
        )
    contents = replace(first, num_crops=stated.crops(first.num_crops), input_size=size)
    facts: dict[str, Any] = {
        "crops_in_files": first.num_crops,
        "teacher_values": teacher_values(looked_at[-1].embeddings),
        "images_of_this_sha256": _same_images(parts, images),
    }
    return ImageFiles(
        folder=source,
        names=names,
        contents=contents,
        parse=_SampleFile(parts=parts, contents=contents, may_be_augmented=bool(further)),
        unmatched=unmatched,
        lost=(*LOST, *(f"parameters of {name}" for name in further)),
        facts={name: value for name, value in facts.items() if value is not None},
    )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image's embeddings and crops."""

    embeddings: NDArray[np.float32]
    """(M, D)."""
    boxes: NDArray[np.int64]
    """(M, 4) top, left, height, width, pixels."""
    flips: NDArray[np.bool_]
    augmented: frozenset[str]
    """What else was done to some crop, by ml-dr's names."""


@dataclass(frozen=True, kw_only=True)
class _SampleFile:
    parts: Sequence[Parts | None]
    """Per image row."""
    contents: Contents
    may_be_augmented: bool

    def __call__(self, path: Path, image: int, height: int, width: int) -> ImageLabels:
        parts = self.parts[image]
        if parts is None:
            raise Refused("is missing")
        sample, m = read_sample(parts), self.contents.num_crops
        held, values = sample.embeddings.shape
        if held < m or values != self.contents.num_classes:
            raise Refused(
                f"holds {held} embeddings of {values} values, where {m} of {self.contents.num_classes} are taken"
            )
        if sample.augmented and not self.may_be_augmented:
            raise Refused("holds crops that were augmented further, unlike the first file")
        return ImageLabels(
            labels=sample.embeddings[:m],
            boxes=pixel_boxes(sample.boxes[:m], height, width),
            flips=sample.flips[:m],
        )


def read_sample(parts: Parts) -> Sample:
    """Read the files of one sample; Refused where a file is missing or holds something else."""
    if CROPS not in parts:
        raise Refused(
            f"has no {CROPS} beside it, and without it nothing says which crops the teachers saw"
        )
    crops = _crops(parts[CROPS])
    ending = next(ending for ending in ARRAYS if ending in parts)
    embeddings = finite(_image_embeddings(parts[ending], ending), "image_emb")
    if embeddings.ndim != 2 or len(embeddings) != len(crops):
        raise Refused(f"holds image_emb of shape {embeddings.shape} for {len(crops)} crops")
    read = [_crop(crop) for crop in crops]
    return Sample(
        embeddings=embeddings,
        boxes=np.array([box for box, _, _ in read], np.int64),
        flips=np.array([flip for _, flip, _ in read], bool),
        augmented=frozenset(kind for _, _, kinds in read for kind in kinds),
    )


def _image_embeddings(file: Path | TarredImage, ending: str) -> NDArray[Any]:
    data = _bytes(file, MAX_ARRAYS_BYTES)
    if ending == "npz":
        if not data.startswith(ZIP_MAGIC):
            raise Refused("is no .npz file")
        entries = ZipEntries(data, inflate=MAX_INFLATED * len(data))
        if "image_emb.npy" not in entries:
            raise Refused("has no array image_emb")
        return read_npy(entries.read("image_emb.npy"), "image_emb")
    value = parse_torch(inflated(data, MAX_ARRAYS_BYTES, wbits=GZIP))
    if not isinstance(value, dict) or "image_emb" not in value:
        raise Refused("has no tensor image_emb")
    return array_of(value["image_emb"], "its image_emb")


def _crops(file: Path | TarredImage) -> list[Value]:
    value = _json(file)
    crops = value.get("param_aug") if isinstance(value, dict) else None
    if isinstance(crops, str):
        crops = _parsed(crops)
    if not isinstance(crops, list) or not crops:
        raise Refused(f"has {CROPS} without a list param_aug")
    return crops


def _crop(value: Value) -> tuple[tuple[int, int, int, int], bool, set[str]]:
    """Box and flip of a crop, and what else was done to it."""
    if not isinstance(value, list) or not value:
        raise Refused("holds a crop without parameters")
    box, flips, kinds = pixel_box(value[0]), [], set()
    for entry in value[1:]:
        if isinstance(entry, bool):
            flips.append(entry)
        elif isinstance(entry, list) and len(entry) == 4 and all(type(n) is int for n in entry):
            kinds.add("random_erase")
        elif isinstance(entry, list) and entry and all(map(_is_operation, entry)):
            kinds.add("rand_augment")
        elif entry is not None:
            raise Refused(
                f"holds a crop with parameters {shown(entry)}, of no transformation that is known"
            )
    if len(flips) > 1:
        raise Refused("holds a crop with two flips")
    return box, any(flips), kinds


def _is_operation(value: Value) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and type(value[0]) is int
        and type(value[1]) in (int, float)
    )


def teacher_values(embeddings: NDArray[np.float32]) -> list[int] | None:
    """How many values of a row (M, D) are each teacher's, where every teacher's have unit length; None where not.

    >>> teacher_values(np.array([[0.6, 0.8, 0.0, 1.0]], np.float32))
    [2, 2]
    """
    sums = (embeddings.astype(np.float64) ** 2).cumsum(-1)
    teachers = round(float(sums[0, -1]))
    if teachers < 1 or np.abs(sums[:, -1] - teachers).max() > UNIT:
        return None
    ends = [int(np.abs(sums - n).mean(0).argmin()) + 1 for n in range(1, teachers)]
    return [int(width) for width in np.diff([0, *ends, embeddings.shape[1]])]


def _bytes(file: Path | TarredImage, most: int) -> bytes:
    if isinstance(file, Path):
        return read_bytes(file, most)
    if not 0 < file.size <= most:
        raise Refused(f"has {file.size} bytes, where 1 to {most} are read")
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise Refused("is missing") from None
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror}") from error


def _json(file: Path | TarredImage) -> Value:
    try:
        return _parsed(_bytes(file, MAX_JSON_BYTES).decode("utf-8"))
    except UnicodeDecodeError:
        raise Refused("has JSON beside it that is no text in UTF-8") from None


def _parsed(text: str) -> Value:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("has no JSON where that should be") from None


def _samples(source: Path) -> dict[str, dict[str, Path | TarredImage]]:
    """Samples with embeddings by name, which is the path, below the source, of the file of these."""
    samples: dict[tuple[str, str], dict[str, Path | TarredImage]] = {}
    for name, file in _files(source):
        folder, _, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        if ending in (*ARRAYS, CROPS, ABOUT):
            parts = samples.setdefault((folder, stem), {})
            if ending in parts:
                raise RejectedInput(f"{source}: has {shown(name, 200)} twice")
            parts[ending] = file
    named_by_file = {}
    for (folder, stem), parts in samples.items():
        for ending in [ending for ending in ARRAYS if ending in parts][:1]:
            named_by_file[f"{folder}/{stem}.{ending}".lstrip("/")] = parts
    return named_by_file


def _files(source: Path) -> Iterator[tuple[str, Path | TarredImage]]:
    """Names below the source, those of a shard's members below the shard's."""
    if not source.exists():
        raise RejectedInput(f"{source} is not there: give shards of DataCompDR or their folder")
    shards = sorted(source.glob("*.tar")) if source.is_dir() else [source]
    for shard in shards:
        prefix = "" if shard == source else f"{shard.name}/"
        for member in members(shard):
            if member.regular:
                name = member.name.removeprefix("./")
                yield f"{prefix}{name}", TarredImage(shard, name, member.offset, member.size)
    if not shards:
        for place, folders, files in os.walk(source):
            folders.sort()
            for name in sorted(files):
                path = Path(place, name)
                yield path.relative_to(source).as_posix(), path


def _names(
    samples: Mapping[str, Parts], images: ImageSource, source: Path
) -> tuple[list[str], list[str]]:
    """Per image row its sample's name, or where one would be; and the first samples without an image."""
    by_key: dict[str, str] = {}
    for name in samples:
        key = name.rpartition("/")[2].partition(".")[0]
        if by_key.setdefault(key, name) != name:
            raise RejectedInput(f"{source}: {by_key[key]} and {name} are samples of one key")
    names: list[str] = []
    rows: dict[str, int] = {}
    for row, key in enumerate(images.keys):
        stem = key.rpartition("/")[2].partition(".")[0]
        names.append(by_key.get(stem, f"{stem}.{ARRAYS[0]}"))
        if rows.setdefault(stem, row) != row and stem in by_key:
            raise RejectedInput(
                f"images {images.keys[rows[stem]]} and {key} would both have the labels of {by_key[stem]}"
            )
    if not rows.keys() & by_key.keys():
        raise RejectedInput(
            f"{source} holds no datacompdr sample for the images of {images.root} (looked for {names[0]}): an image's "
            "file has the sample's name"
        )
    unmatched = [name for key, name in by_key.items() if key not in rows]
    return names, unmatched[:MAX_LISTED]


def _configured(source: Path) -> tuple[int | None, set[str]]:
    """Side of the crops and further augmentations, as the generator's configuration says, where it is there."""
    path = source / CONFIG
    if not path.is_file():
        return None, set()
    with named(path):
        text = read_bytes(path, MAX_JSON_BYTES).decode("utf-8", "replace")
        value = _parsed(text.strip().partition("\n")[0])  # a line of JSON Lines
        if isinstance(value, dict) and isinstance(value.get("reinforce"), dict):
            value = value["reinforce"].get("image_augmentation")
        enabled = enabled_transformations(value)
        size = value["random_resized_crop"].get("size")
    side = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    is_side = type(side) is int and 1 <= side <= 65_534
    return (side if is_side else None), enabled & set(AUGMENTING)


def _same_images(parts: Sequence[Parts | None], images: ImageSource) -> list[int] | None:
    """Count how many of a few images have the SHA-256 that their sample says, and how many were compared."""
    rows = [row for row, files in enumerate(parts) if files is not None and ABOUT in files]
    same = compared = 0
    for row in rows[:: max(1, len(rows) // LOOKED_AT)][:LOOKED_AT]:
        try:
            about = _json((parts[row] or {})[ABOUT])
            data = images.file(images.keys[row]).read_bytes()
        except (Refused, RejectedInput, OSError):
            continue  # the image is named when it is read; nothing else needs the sample's digest
        if isinstance(about, dict) and isinstance(about.get("sha256"), str):
            compared += 1
            same += hashlib.sha256(data).hexdigest() == about["sha256"]
    return [same, compared] if compared else None
