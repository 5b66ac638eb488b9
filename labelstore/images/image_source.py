"""Which images there are, whatever they lie in: keys, classes, sizes, digests, encoded bytes; no pixels.

`ImageSource` is what all else is written for. A folder in torchvision's order is here; lists, tar shards and data
sets of Hugging Face have modules of their own; `open_images` tells by a path which it is.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput, StorageError

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""File name endings, in lower case, that make a file an image: torchvision's IMG_EXTENSIONS."""
NO_IMAGE_NAME, HIDDEN, OUTSIDE = "not an image's ending", "hidden", "beside the class folders"
"""Why a file is ignored, as `ImageSource.ignored` counts it."""
MAX_KEY_BYTES = 255
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")

# Enough for nearly every header; a JPEG with a long profile or preview is read whole
HEADER_BYTES = 16_384
# Start of frame, baseline to lossless: 0xC4, 0xC8 and 0xCC mean something else
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
JPEG_BASELINE = frozenset({0xC0, 0xC1})
PPM_KINDS = frozenset({b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"})


class EncodedImage(ABC):
    """The bytes of one image that is not a file of its own; `str` of it is what messages call it."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """All of them. OSError as reading a file raises it, RejectedInput where they are not there any more."""

    @abstractmethod
    def read_head(self, num_bytes: int) -> bytes:
        """The first ones."""


ImageFile: TypeAlias = Path | EncodedImage
"""Where one image is: `read_bytes()` from any thread or process, and `str` for messages."""


@dataclass(frozen=True, kw_only=True)
class ImageSource(ABC):
    """N images of C classes, each known by its key; can be pickled, and read by many threads at once."""

    kind: ClassVar[str]
    """What the images lie in, as a label set's facts record it."""

    root: Path
    """Where they are, as it was given."""
    classes: tuple[str, ...]
    """C class names."""
    keys: tuple[str, ...]
    """N relative POSIX paths, NFC, unique."""
    class_ids: NDArray[np.int64]
    """(N,) index into `classes`."""
    sizes: NDArray[np.int64]
    """(N,) bytes, or -1 where only the keys were asked for."""
    mtimes_ns: NDArray[np.int64]
    """(N,) nanoseconds since 1970, or -1 where only the keys were asked for."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Reason -> files that are there and are no images of this source."""

    def with_classes(self, classes: Sequence[str]) -> Self:
        """The same images with their classes numbered in this order; RejectedInput for a class that is not in it."""
        number = {name: at for at, name in enumerate(classes)}
        strange = [name for name in self.classes if name not in number]
        if strange:
            raise RejectedInput(
                f"{self.root} has a class {strange[0]!r} that is none of {len(number)} ({len(strange)} such): give "
                "images of these classes"
            )
        renumbered = np.array([number[name] for name in self.classes], np.int64)
        return replace(self, classes=tuple(classes), class_ids=renumbered[self.class_ids])

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def file(self, key: str) -> ImageFile:
        """Where the image of that key is; FileNotFoundError, here or when it is read, where there is none."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageSource):
    """The images of one folder with one subfolder per class, in torchvision's ImageFolder order.

    `classes` are the subfolders, sorted: as numbers where all are numbers ("2" before "10"), otherwise as text.
    `keys` are relative to the root.
    """

    kind = "folder"

    spellings: Mapping[str, str] = field(default_factory=dict)
    """Key -> relative path on this disk, where the disk spells it differently (not NFC)."""

    def file(self, key: str) -> Path:
        """Where the image of that key lies."""
        return self.root / self.spellings.get(key, key)

    def with_hidden(self) -> ImageFolder:
        """Hidden files and folders too, as stores that were made before they were ignored may have them."""
        return scan_folder(self.root, hidden=True)


def check_key(key: str) -> str:
    """The image key in NFC; RejectedInput for anything that is not a plain relative POSIX path.

    >>> check_key("n01440764/n01440764_18.JPEG")
    'n01440764/n01440764_18.JPEG'
    """
    try:
        normal = key if key.isascii() else unicodedata.normalize("NFC", key)
        num_bytes = len(normal.encode())
    except UnicodeEncodeError:
        raise RejectedInput(f"image key {key!r} is not UTF-8: rename the file") from None
    parts = normal.split("/")
    if "" in parts or "." in parts or ".." in parts or "\\" in normal or "\0" in normal:
        raise RejectedInput(
            f"image key {key!r} must be a relative path with no empty, '.' or '..' part, "
            "no backslash and no NUL: rename the file"
        )
    if _CONTROL.search(normal):
        # printed, they would command the terminal, and a newline would make two keys of one in a list
        raise RejectedInput(f"image key {normal!r} has a control character: rename the file")
    if num_bytes > MAX_KEY_BYTES:
        raise RejectedInput(
            f"image key {normal[:40]!r}... has {num_bytes} bytes, {MAX_KEY_BYTES} are allowed: shorten it"
        )
    return normal


def check_keys(keys: Sequence[str]) -> None:
    """Refuse as `check_key` does, 20 times as fast: for keys that come out of a catalogue."""
    joined = "\n".join(("", *keys, ""))
    # seen in one long text: whatever could be refused, and some that are not (hidden files)
    if (
        joined.count("\n") != len(keys) + 1
        or not joined.replace("\n", "").isprintable()
        or any(mark in joined for mark in ("\\", "\0", "//", "/.", "\n.", "\n/", "/\n", "\n\n"))
        or not joined.isascii()
        or max(map(len, keys), default=0) > MAX_KEY_BYTES
    ):
        for key in keys:
            check_key(key)


def scan_folder(root: Path, *, keys_only: bool = False, hidden: bool = False) -> ImageFolder:
    """All images below `root`, one class per subfolder, ordered as torchvision's ImageFolder orders them.

    Links are followed; files and folders whose name begins with a dot are ignored, unless `hidden`. `keys_only`
    skips file sizes and times. Raises RejectedInput for a folder that
    does not exist, has no class folders or has a class without images, and for keys that `check_key`
    refuses or that fall together in NFC.
    """
    if not root.is_dir():
        raise RejectedInput(f"{root} is not a folder: give a folder with one subfolder per class")
    ignored: Counter[str] = Counter()
    names: list[str] = []
    for entry in _entries(root):
        if not hidden and entry.name.startswith("."):
            ignored[HIDDEN] += _num_files(entry)
        elif entry.is_dir():
            names.append(entry.name)
        else:
            ignored[OUTSIDE] += 1
    if not names:
        raise RejectedInput(f"{root} has no subfolders: give a folder with one subfolder per class")
    keys: list[str] = []
    owners: list[str] = []
    facts: list[tuple[int, int]] = []
    spellings: dict[str, str] = {}
    # rows stay in torchvision's order whatever the classes are called: files of other programs count in it
    for name in sorted(names):
        before = len(keys)
        # torchvision sorts whole folder paths, so "a-b" comes before the subfolders of "a"
        for folder in sorted(_folders(root, name, ancestors=(), hidden=hidden)):
            for entry in sorted(_entries(root / folder), key=lambda entry: entry.name):
                if not hidden and entry.name.startswith("."):
                    ignored[HIDDEN] += _num_files(entry)
                    continue
                if entry.is_dir():
                    continue
                if not is_image_name(entry.name):
                    ignored[NO_IMAGE_NAME] += 1
                    continue
                spelling = f"{folder}/{entry.name}"
                key = check_key(spelling)
                if key != spelling:
                    spellings[key] = spelling
                keys.append(key)
                facts.append(_size_and_time(entry, keys_only))
        if len(keys) == before:
            raise RejectedInput(
                f"class folder {root / name} holds no image ({', '.join(sorted(EXTENSIONS))}): "
                "remove it or add its images"
            )
        owners.extend([name] * (len(keys) - before))
    if spellings and len(set(keys)) < len(keys):
        twice = next(key for key in spellings if keys.count(key) > 1)
        raise RejectedInput(f"two files are both {twice!r} after Unicode normalisation: rename one")
    columns = np.array(facts, np.int64).reshape(-1, 2)
    classes = sorted_classes(names)
    number = {name: at for at, name in enumerate(classes)}
    return ImageFolder(
        root=root,
        classes=classes,
        keys=tuple(keys),
        class_ids=np.array([number[name] for name in owners], np.int64),
        sizes=columns[:, 0].copy(),
        mtimes_ns=columns[:, 1].copy(),
        ignored=dict(+ignored),
        spellings=spellings,
    )


def ignored_words(ignored: Mapping[str, int]) -> str:
    """Say in words what `ImageSource.ignored` counts; empty where that is nothing.

    >>> ignored_words({"hidden": 2, "not an image's ending": 1})
    "3 files ignored (2 hidden, 1 not an image's ending)"
    """
    total = sum(ignored.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in ignored.items() if count)
    return f"{total:,} file{'s' if total > 1 else ''} ignored ({reasons})" if total else ""


def sorted_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Class names in the order of their ids: as numbers where all are whole numbers, otherwise as text.

    >>> sorted_classes(["10", "2", "1"]), sorted_classes(["10", "2", "x"])
    (('1', '2', '10'), ('10', '2', 'x'))
    """
    if all(name.isascii() and name.isdigit() for name in names):
        # without leading zeros, shorter is less: no int() of a thousand digits
        key = {name: name.lstrip("0") for name in names}
        return tuple(sorted(names, key=lambda name: (len(key[name]), key[name], name)))
    return tuple(sorted(names))


def is_hidden(key: str) -> bool:
    """Whether a file or folder in this relative path has a name that begins with a dot."""
    return key.startswith(".") or "/." in key


def torchvision_classes(images: ImageSource) -> ImageSource:
    """The images with a folder's classes numbered as torchvision's ImageFolder sorts them: as text.

    So labels that other programs made from the folder number them.
    """
    if not isinstance(images, ImageFolder):
        return images
    return images.with_classes(sorted(images.classes))


def is_image_name(name: str) -> bool:
    """Whether a file of that name is an image by its ending."""
    return name[name.rfind(".") :].lower() in EXTENSIONS if "." in name else False


def sniff(data: bytes) -> str | None:
    """Format by the first bytes, never by the name: jpeg, png, webp, gif, bmp, tiff, ppm, or None.

    >>> sniff(b"GIF89a...")
    'gif'
    """
    head = bytes(data[:16])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if head[:2] in PPM_KINDS and head[2:3].isspace():
        return "ppm"
    return "bmp" if head.startswith(b"BM") else None


def open_picture(data: bytes) -> Image.Image:
    """Pillow's reader of a picture of a format that `sniff` knows; UnidentifiedImageError for any other.

    Pillow would try all its formats otherwise, and give PostScript to Ghostscript.
    """
    from PIL import Image, UnidentifiedImageError

    kind = sniff(data)
    if kind is None:
        raise UnidentifiedImageError("no format that is read here")
    return Image.open(io.BytesIO(data), formats=[kind])


class JpegFrame(NamedTuple):
    """What a JPEG says of its picture before the first scan."""

    height: int
    width: int
    components: int
    is_baseline: bool
    """False for progressive and rarer processes, which keep all coefficients in memory."""
    bits: int
    """Per value."""
    ids: bytes
    """One per component."""
    sampling: bytes
    """Of each component, horizontal and vertical, four bits each: 0x22 0x11 0x11 is 4:2:0."""


def image_size(data: bytes | ImageFile) -> tuple[int, int]:
    """Height and width in pixels from the header alone, EXIF orientation not applied.

    Raises RejectedInput, naming the file, if it is not an image.
    """
    if isinstance(data, bytes):
        return _size_of_bytes(data, "image data")
    try:
        if isinstance(data, EncodedImage):
            return _quick_size(data.read_head(HEADER_BYTES)) or _size_of_bytes(
                data.read_bytes(), str(data)
            )
        with data.open("rb") as file:
            head = file.read(HEADER_BYTES)
            size = _quick_size(head)
            return size if size else _size_of_bytes(head + file.read(), str(data))
    except OSError as error:
        raise StorageError(f"cannot read {data}: {error.strerror}") from error


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """The first frame of a JPEG, or None if it is not in `data`."""
    at, end = 2, len(data)
    while at + 10 <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in JPEG_ALONE:
            at += 2
        elif marker in JPEG_FRAMES:
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (at + 5, at + 7))
            count = data[at + 9]
            each = data[at + 10 : at + 10 + 3 * count]
            return JpegFrame(
                height, width, count, marker in JPEG_BASELINE, data[at + 4], each[::3], each[1::3]
            )
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def digest(data: bytes) -> bytes:
    """First 16 bytes of the SHA-256 of a file's bytes."""
    return hashlib.sha256(data).digest()[:16]


def _quick_size(head: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG or PNG, read from the header by hand: 20 times as fast as opening it."""
    kind = sniff(head)
    if kind == "jpeg":
        frame = jpeg_frame(head)
        # A height of 0 is given later in the file (DNL); Pillow refuses such a file, so it decides
        return (frame.height, frame.width) if frame and frame.height and frame.width else None
    if kind == "png" and head[12:16] == b"IHDR" and len(head) >= 24:
        width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        return (height, width) if height and width else None
    return None


def _size_of_bytes(data: bytes, name: str) -> tuple[int, int]:
    size = _quick_size(data)
    if size:
        return size
    from PIL import UnidentifiedImageError

    try:
        with open_picture(data) as picture:
            width, height = picture.size
    except UnidentifiedImageError:
        raise RejectedInput(f"{name} is not an image that can be read: remove it") from None
    except Exception as error:  # noqa: BLE001
        # Pillow's parsers raise whatever they stumble over: struct.error, KeyError, SyntaxError, ...
        reason = " ".join(str(error).split())
        raise RejectedInput(f"{name} has a damaged header ({reason}): remove it") from None
    return height, width


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise StorageError(f"cannot list {folder}: {error.strerror}") from error


def _num_files(entry: os.DirEntry[str]) -> int:
    """Files that an ignored entry is or holds; what cannot be listed counts as none."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def _folders(
    root: Path, folder: str, ancestors: tuple[tuple[int, int], ...], *, hidden: bool
) -> Iterator[str]:
    """The folder and all below it, hidden ones only if asked for, as POSIX paths below `root`."""
    status = (root / folder).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        # Following it would never end
        raise RejectedInput(
            f"{root / folder} is a link to a folder that contains it: remove the link"
        )
    yield folder
    for entry in _entries(root / folder):
        if entry.is_dir() and (hidden or not entry.name.startswith(".")):
            below = f"{folder}/{entry.name}"
            yield from _folders(root, below, (*ancestors, identity), hidden=hidden)


def _size_and_time(entry: os.DirEntry[str], keys_only: bool) -> tuple[int, int]:
    """Bytes and nanoseconds; RejectedInput for what is not a regular file, since reading a pipe would hang."""
    if keys_only:
        if not entry.is_file():
            raise RejectedInput(f"{entry.path} is not a file, or a broken link: remove it")
        return -1, -1
    try:
        status = entry.stat()
    except OSError:
        raise RejectedInput(
            f"{entry.path} cannot be read, or is a broken link: remove it"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise RejectedInput(f"{entry.path} is not a file: remove it")
    return status.st_size, status.st_mtime_ns
