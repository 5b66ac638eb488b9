"""Every error that labelstore and trainer raise on purpose, grouped by what a caller would do about it.

    LabelStoreError                 exit 1
    ├── UsageError                  exit 2   the call makes no sense: change the arguments        (ValueError)
    ├── DamagedShard                exit 3   bytes are not what the ledger says: `labelstore.repair`
    ├── StoreNotFound               exit 4   no store there, or not one that this version reads   (FileNotFoundError)
    │   └── FormatVersionError      exit 4
    ├── ConflictError               exit 5   the store holds something else, or another worker holds the lease
    │   └── LeaseLost               exit 5
    ├── StorageError                exit 6   the disk refused: full, read-only, I/O error         (OSError)
    ├── RejectedInput               exit 7   an image, a checkpoint or a label file is not usable (ValueError)
    └── IncompleteError             exit 8   some labels are not made yet: run `labelstore.generate` again
        └── NotGenerated            exit 8   these very crops are not made yet                    (KeyError)

A message is one line: what was given, what is allowed, what to do. The command line catches the base
class once and turns it into that line and the exit code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 1000
"""Softmax temperatures of teachers and runs: logits divided by less or more are one class, or none."""


class LabelStoreError(Exception):
    """Base of every error raised on purpose; `exit_code` is what a command ends with."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        # KeyError's own __str__ would quote the message; a file's name in it may be no text, and could not be printed
        return printable(str(self.args[0])) if self.args else ""


class UsageError(LabelStoreError, ValueError):
    """Arguments that cannot be meant: K > C, M = 0, thresholds out of order."""

    exit_code = 2


def printable(text: str) -> str:
    r"""The text, with bytes of a file's name that are not UTF-8 written out.

    >>> printable("a-\udcff")
    'a-\\udcff'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def check_utf8(text: str) -> None:
    """UsageError for a path or argument with bytes that are not UTF-8: no catalogue, config file or page could
    hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(not_utf8(text)) from None


def not_utf8(text: str) -> str:
    """Say for messages that such a path is no text."""
    return f"{printable(text)} is not UTF-8: rename the file or folder, or give another"


def check_seed(seed: int) -> None:
    """UsageError for a seed below 0, of which nothing can be drawn."""
    if seed < 0:
        raise UsageError(f"`seed={seed}`: give a whole number from 0 on")


def told_apart(first: object, second: object) -> tuple[str, str]:
    """Two different values for a message; of two records only what differs.

    >>> told_apart({"name": "ms", "k": 5}, {"name": "ms", "k": 7}), told_apart(1.0, 2.0)
    (('k 5', 'k 7'), ('1.0', '2.0'))
    """
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        return str(first), str(second)
    names = [n for n in {**first, **second} if first.get(n, first) != second.get(n, second)]
    one, other = (
        ", ".join(f"{name} {each.get(name, 'none')}" for name in names) for each in (first, second)
    )
    return one, other


class DamagedShard(LabelStoreError):
    """Bytes on disk differ from the ledger's; names the file, the images and the repair command."""

    exit_code = 3


class StoreNotFound(LabelStoreError, FileNotFoundError):
    """There is no store at that path."""

    exit_code = 4


class FormatVersionError(StoreNotFound):
    """The store is of a newer format than this version reads."""

    exit_code = 4


class ConflictError(LabelStoreError):
    """The store exists with a different plan, teacher, codec or dtype, or is busy."""

    exit_code = 5


class LeaseLost(ConflictError):
    """The lease expired, or another worker took the image block; nothing was committed."""

    exit_code = 5


class StorageError(LabelStoreError, OSError):
    """The disk refused a read or a write: full, read-only, I/O error; names the file."""

    exit_code = 6


class RejectedInput(LabelStoreError, ValueError):
    """An image, a checkpoint or a foreign label file that cannot be used; names it."""

    exit_code = 7


class IncompleteError(LabelStoreError):
    """Work stopped cleanly before everything was generated."""

    exit_code = 8


class NotGenerated(IncompleteError, KeyError):
    """The crops asked for have no committed labels."""

    exit_code = 8
