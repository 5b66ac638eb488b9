"""Tar shards as webdataset lays them out: members `KEY.jpg` and `KEY.cls` or `KEY.json`, read at random by offset.

The class of `a.b.jpg` is in `a.b.cls` or, as webdataset ends a sample's name at the first dot, in `a.cls`: the text of
`.cls`, or `cls`, `label` or `class` in `.json`; where no sample has one, it is the folder that the image lies in, as
timm's readers have it. The image key is the member's name; where members of different shards have the same name, all
keys begin with the shard's name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput
from labelstore.images.class_names import number_classes
from labelstore.images.image_source import (
    EXTENSIONS,
    HIDDEN,
    NO_IMAGE_NAME,
    EncodedImage,
    ImageSource,
    check_key,
    is_hidden,
)
from labelstore.images.tar_members import Member, members

CLASS_ENDINGS = (".cls", ".json")
BESIDE = "beside the tar files"
OTHER_PART = "another part of a sample"
JSON_CLASSES = ("cls", "label", "class")
MAX_CLASS_BYTES = 1 << 20
"""Longest `.cls` or `.json` that is read."""


@dataclass(frozen=True, slots=True)
class TarredImage(EncodedImage):
    """One member of a tar file."""

    shard: Path
    name: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """From the file as it is now; RejectedInput where it has become shorter."""
        data = self.read_head(self.size)
        if len(data) < self.size:
            raise RejectedInput(f"{self} is cut off: the shard has become shorter; copy it again")
        return data

    def read_head(self, num_bytes: int) -> bytes:
        """The first bytes, no more than the member has."""
        # opened on each read: no handle is shared between threads or across a fork
        with self.shard.open("rb", buffering=0) as file:
            file.seek(self.offset)
            wanted = min(num_bytes, self.size)
            data = file.read(wanted) or b""
            while len(data) < wanted and (more := file.read(wanted - len(data))):
                data += more
        return data

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class TarShards(ImageSource):
    """The images of tar files, shard after shard, in the order of their members."""

    kind = "tar"

    shards: tuple[Path, ...]
    shard_of: NDArray[np.int32]
    """(N,) index into `shards`."""
    offsets: NDArray[np.int64]
    """(N,) first byte of each image in its shard."""
    prefixed: bool
    """True where keys begin with the shard's name."""
    _rows: dict[str, int] = field(repr=False)

    def file(self, key: str) -> TarredImage:
        """Where the image of that key is; FileNotFoundError for a key that no shard has."""
        row = self._rows.get(key)
        if row is None:
            raise FileNotFoundError(2, f"no image {key}", str(self.root))
        return TarredImage(
            self.shards[self.shard_of[row]],
            key.partition("/")[2] if self.prefixed else key,
            int(self.offsets[row]),
            int(self.sizes[row]),
        )


def read_shards(root: Path, shards: Sequence[Path], *, beside: int = 0) -> TarShards:
    """The images of these tar files; `root` is how they were given, `beside` how many other files lie there.

    RejectedInput, naming shard and member, for an image without a class, a class without an image, two images of one
    sample, an image that is a link, a name that `check_key` refuses or that comes twice in a shard, and for a file
    that is no tar, is compressed or is cut off.
    """
    names: list[str] = []
    stated: list[str | int | None] = []
    shard_of: list[int] = []
    places: list[tuple[int, int, int]] = []
    ignored = Counter({BESIDE: beside})
    for number, shard in enumerate(shards):
        mtime = shard.stat().st_mtime_ns if shard.exists() else -1
        for member, name, value in _samples(shard, ignored):
            names.append(name)
            stated.append(value)
            shard_of.append(number)
            # a member's own time is often 0 or the same for all; the file's changes whenever it is written
            places.append((member.offset, member.size, mtime))
    if not names:
        raise RejectedInput(
            f"{root} holds no image ({', '.join(sorted(EXTENSIONS))}): give other shards"
        )
    values = _classes_of(stated, names, shards, shard_of)
    prefixed = len(set(names)) < len(names)
    if prefixed:
        names = [
            check_key(f"{shards[number].stem}/{name}")
            for name, number in zip(names, shard_of, strict=True)
        ]
    rows = {name: row for row, name in enumerate(names)}
    if len(rows) < len(names):
        twice = next(name for row, name in enumerate(names) if rows[name] != row)
        raise RejectedInput(
            f"{root} has {twice} in two shards of one name: name the shards differently"
        )
    classes, class_ids = number_classes(
        values, lambda row: f"{shards[shard_of[row]]}: {names[row]}"
    )
    columns = np.array(places, np.int64).reshape(-1, 3)
    return TarShards(
        root=root,
        classes=classes,
        keys=tuple(names),
        class_ids=class_ids,
        sizes=columns[:, 1].copy(),
        mtimes_ns=columns[:, 2].copy(),
        ignored=dict(+ignored),
        shards=tuple(shards),
        shard_of=np.array(shard_of, np.int32),
        offsets=columns[:, 0].copy(),
        prefixed=prefixed,
        _rows=rows,
    )


@dataclass(frozen=True, slots=True)
class _Image:
    member: Member
    name: str
    own: str
    """Folder and file name up to the last dot."""
    first: str
    """And up to the first, which is where webdataset ends a sample's name."""


def _classes_of(
    stated: Sequence[str | int | None],
    names: Sequence[str],
    shards: Sequence[Path],
    shard_of: Sequence[int],
) -> list[str | int]:
    """The stated class of each image, or, where none of them has one, its folder; RejectedInput for neither."""
    folders = [name.rpartition("/")[0].rpartition("/")[2] for name in names]
    if all(value is None for value in stated) and all(folders):
        return list(folders)
    classes: list[str | int] = []
    for value, name, shard in zip(stated, names, shard_of, strict=True):
        if value is None:
            raise RejectedInput(
                f"{shards[shard]}: {name} has no class: add a member {Path(name).stem}.cls with its number or name, or "
                ".json with `label`; or pack all images in folders that are called by their classes, without either"
            )
        classes.append(value)
    return classes


def _samples(shard: Path, ignored: Counter[str]) -> Iterator[tuple[Member, str, str | int | None]]:
    """The images of one shard, each with its key and its class (None: not stated); what is no image is counted."""
    images: list[_Image] = []
    stated: dict[str, dict[str, Member]] = {}
    for member in members(shard, wanted=CLASS_ENDINGS, most=MAX_CLASS_BYTES):
        name = member.name.removeprefix("./")
        folder, _, file = name.rpartition("/")
        stem, dot, ending = file.rpartition(".")
        own, ending = f"{folder}/{stem}", f".{ending.lower()}"
        if is_hidden(name) and ".." not in name.split("/"):
            ignored[HIDDEN] += 1
        elif dot and ending in EXTENSIONS:
            images.append(_image(member, name, own, shard))
        elif dot and ending in CLASS_ENDINGS and member.regular:
            stated.setdefault(own, {})[ending] = member
        else:
            ignored[NO_IMAGE_NAME] += 1
    own_names = {image.own for image in images}
    values = {
        sample: value
        for sample, files in stated.items()
        # names with a dot may be other parts of a sample, which are read only where an image has that name
        if "." not in sample.rpartition("/")[2] or sample in own_names
        if (value := _stated_class(files, shard)) is not None
    }
    chosen: dict[str, list[_Image]] = {}
    for image in images:
        sample = image.first if image.own not in values and image.first in values else image.own
        chosen.setdefault(sample, []).append(image)
    for sample, found in chosen.items():
        # beside 7.jpg, 7.depth.png is another part of sample 7
        plain = [image for image in found if image.own == sample] or found
        ignored[OTHER_PART] += len(found) - len(plain)
        if len(plain) > 1:
            raise RejectedInput(
                f"{shard}: {plain[0].name} and {plain[1].name} are two images of one sample: keep one"
            )
        yield plain[0].member, plain[0].name, values.get(sample)
    if left := values.keys() - chosen.keys():
        raise RejectedInput(f"{shard}: {min(left).lstrip('/')} has a class and no image: remove it")


def _image(member: Member, name: str, own: str, shard: Path) -> _Image:
    if not member.regular:
        raise RejectedInput(f"{shard}: {name} is a link or a device: pack the image itself")
    try:
        name = check_key(name)
    except RejectedInput as error:
        raise RejectedInput(f"{shard}: {error}") from None
    folder, _, stem = own.rpartition("/")
    return _Image(member, name, own, f"{folder}/{stem.partition('.')[0]}")


def _stated_class(files: Mapping[str, Member], shard: Path) -> str | int | None:
    """The class of one sample's files; .cls says the class and nothing else, so it goes before .json."""
    for ending in CLASS_ENDINGS:
        if ending in files and (value := _class_of(files[ending], shard, ending)) is not None:
            return value
    return None


def _class_of(member: Member, shard: Path, ending: str) -> str | int | None:
    """The class that a member states; None for JSON without one."""
    try:
        text = (member.small or b"").decode()
    except UnicodeDecodeError:
        raise RejectedInput(f"{shard}: {member.name} is not text in UTF-8") from None
    if ending == ".cls":
        if not text.strip():
            raise RejectedInput(f"{shard}: {member.name} is empty: write the class into it")
        return text.strip()
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise RejectedInput(f"{shard}: {member.name} is not JSON ({reason})") from None
    if not isinstance(parsed, Mapping):
        return None
    value = next((parsed[name] for name in JSON_CLASSES if parsed.get(name) is not None), None)
    if value is not None and type(value) not in (str, int):
        raise RejectedInput(
            f"{shard}: {member.name} has class {str(value)[:40]}: a number or a name is needed"
        )
    return value
