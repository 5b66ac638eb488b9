"""The members of a plain tar file with their offsets, read once from the headers, so that any can be read later.

POSIX ustar with its prefix, GNU's long names and pax records (IEEE 1003.1, "pax interchange format"); sizes in octal
or in base 256. Python's own reader takes several times as long and keeps an object of every member.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from labelstore.errors import RejectedInput, StorageError

BLOCK = 512
SKIPPED_AT_ONCE = 2048 * BLOCK
MAX_NAME_BYTES = 1 << 16
"""Longest record that renames a member."""
REGULAR = (b"0", b"\0", b"7")
FOLDER = b"5"
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL = b"L", b"K", b"x", b"g"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}


class Member(NamedTuple):
    """One member: its name as it is written, and where its bytes are."""

    name: str
    offset: int
    size: int
    regular: bool
    """False for links, devices and all else that has no bytes of its own."""
    small: bytes | None
    """Its bytes, if the caller asked for them."""


def members(path: Path, *, wanted: tuple[str, ...] = (), most: int = 1 << 20) -> Iterator[Member]:
    """All members but folders, in order; the contents too of those whose names end with one of `wanted`.

    Archives that were appended to one another (`cat a.tar b.tar`) are read to the end of the last. RejectedInput for
    what is no tar file, is compressed, is cut off, or has a header or a wanted member that cannot be.
    """
    try:
        # a page holds the header and the next small member, and not much of a photograph
        with path.open("rb", buffering=4096) as file:
            yield from _members(file, path, wanted, most)
    except FileNotFoundError:
        raise RejectedInput(f"{path} is not there: name shards that exist") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _members(file: BinaryIO, path: Path, wanted: tuple[str, ...], most: int) -> Iterator[Member]:
    end = file.seek(0, 2)
    at = 0
    name: str | None = None
    size: int | None = None
    ended = False  # an end mark was the last thing read
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if header.count(0) == BLOCK == len(header):
            at, ended = _skip_zeros(file, at + BLOCK), True
            continue
        if ended and not header:
            return
        if ended and (len(header) < BLOCK or not _is_header(header)):
            raise RejectedInput(
                f"{path} goes on at byte {at:,}, after its end mark, with what is no tar member: make or copy it again"
            )
        ended = False
        if len(header) < BLOCK:
            _refuse_compressed(header, path, at)
            raise RejectedInput(
                f"{path} is cut off at byte {end:,}, or is no tar file: it has no end mark; copy it again"
            )
        _check(header, path, at)
        kind = header[156:157]
        length = size if size is not None and kind not in (LONG_NAME, LONG_LINK, PAX) else None
        length = _number(header[124:136], path, at) if length is None else length
        offset = at + BLOCK
        if kind not in REGULAR and kind not in (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL, b"S"):
            length = 0 if kind in b"123456" else length
        if offset + length > end:
            raise RejectedInput(
                f"{path} is cut off: a member ends at byte {offset + length:,}, the file at {end:,}; copy it again"
            )
        at = offset + -(-length // BLOCK) * BLOCK
        if kind in (LONG_NAME, PAX):
            record = _record(file, path, offset, length)
            if kind == LONG_NAME:
                name = _text(record.rstrip(b"\0"), path)
            else:
                name, size = _pax(record, path, name, size)
            continue
        if kind in (LONG_LINK, PAX_GLOBAL):
            continue
        own = _name(header, path) if name is None else name
        name = size = None
        if kind == FOLDER or (kind in REGULAR and own.endswith("/")):
            continue
        small = None
        if wanted and kind in REGULAR and own.lower().endswith(wanted):
            if length > most:
                raise RejectedInput(f"{path}: {own!r} has {length:,} bytes, {most:,} are allowed")
            file.seek(offset)
            small = file.read(length)
        yield Member(own, offset, length, kind in REGULAR, small)


def _refuse_compressed(head: bytes, path: Path, at: int) -> None:
    for mark, name in COMPRESSED.items():
        if at == 0 and head.startswith(mark):
            raise RejectedInput(
                f"{path} is compressed with {name}: images are read at random, so unpack it to a plain .tar"
            )


def _skip_zeros(file: BinaryIO, at: int) -> int:
    """Where the next block begins that is not all zeros, or the end of the file."""
    file.seek(at)
    while part := file.read(SKIPPED_AT_ONCE):
        kept = part.lstrip(b"\0")
        if kept:
            return at + (len(part) - len(kept)) // BLOCK * BLOCK
        at += len(part)
    return at


def _is_header(header: bytes) -> bool:
    stated = header[148:156].rstrip(b" \0").lstrip(b" ")
    # the sum counts its own field as blanks
    checksum = _sum(header[:256]) + _sum(header[256:]) - sum(header[148:156]) + 8 * 32
    return stated.isdigit() and all(digit <= 55 for digit in stated) and int(stated, 8) == checksum


def _check(header: bytes, path: Path, at: int) -> None:
    if not _is_header(header):
        _refuse_compressed(header, path, at)
        what = "is no tar file" if at == 0 else f"is damaged at byte {at:,}"
        raise RejectedInput(f"{path} {what}: no member's header is there; make or copy it again")


def _sum(part: bytes) -> int:
    """Adler-32's lower half for up to 256 bytes: their sum plus one, modulo 65,521; ten times as fast."""
    return (zlib.adler32(part) & 0xFFFF) - 1


def _number(field: bytes, path: Path, at: int) -> int:
    if field[0] & 0x80:
        number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        # bit 6 is a sign
        if not field[0] & 0x40 and number < 1 << 62:
            return number
    else:
        digits = field.strip(b" \0")
        if not digits:
            return 0
        if digits.isdigit() and all(digit <= 55 for digit in digits):
            return int(digits, 8)
    raise RejectedInput(f"{path} is damaged at byte {at:,}: a member's size is no number")


def _record(file: BinaryIO, path: Path, offset: int, length: int) -> bytes:
    if length > MAX_NAME_BYTES:
        raise RejectedInput(
            f"{path} has a name of {length:,} bytes: {MAX_NAME_BYTES:,} are allowed"
        )
    file.seek(offset)
    return file.read(length)


def _pax(
    record: bytes, path: Path, name: str | None, size: int | None
) -> tuple[str | None, int | None]:
    """Name and size from pax records, each `LENGTH KEY=VALUE` and a line feed."""
    at = 0
    while at < len(record):
        blank = record.find(b" ", at, at + 8)
        digits = record[at:blank] if blank > 0 else b""
        if not digits.isdigit() or not blank - at + 3 <= int(digits) <= len(record) - at:
            raise RejectedInput(f"{path} has a damaged pax record: make the archive again")
        key, _, value = record[blank + 1 : at + int(digits) - 1].partition(b"=")
        if key == b"path":
            name = _text(value, path)
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise RejectedInput(f"{path} has a damaged pax record: make the archive again")
            size = int(value)
        at += int(digits)
    return name, size


def _name(header: bytes, path: Path) -> str:
    name = header[:100].partition(b"\0")[0]
    # GNU keeps other things where POSIX keeps the beginning of long names
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return _text(name, path)


def _text(name: bytes, path: Path) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise RejectedInput(
            f"{path}: member {name[:60]!r} is not named in UTF-8: rename it"
        ) from None
