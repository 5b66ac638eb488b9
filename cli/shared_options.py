"""Arguments and options that several commands share, so that a name means the same everywhere."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

import typer

from cli.field_options import option

if TYPE_CHECKING:
    import labelstore
    from labelstore.blocks.block_map import MapBlocks

WORK = "How it works"
"""Heading of the options of a command that change how it works and not what it does."""
_LIBRARIES = ("timm:", "torchvision:", "hf-hub:")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"labelstore {version('labelstore')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
    ),
]
_started = time.monotonic()


def start_clock() -> None:
    """A command of this process begins now."""
    global _started
    _started = time.monotonic()


def started() -> float:
    """When the command began, by `time.monotonic`: before torch and the teacher were loaded."""
    return _started


IMAGES = "DIR|LIST|SHARDS"
"""Values of `--images`: a folder, a list (.csv, .parquet), or tar shards; `labelstore.images` opens it."""
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Where catalogues of stores in object storage (s3://, gs://, az://, https://) are kept.",
        show_default="LABELSTORE_CACHE, or the user's cache folder",
    ),
]
Store = Annotated[
    Path,
    typer.Argument(
        metavar="STORE",
        readable=False,  # the library says why, and what to do
        help="Folder of the store, or the URL of a frozen one, such as s3://BUCKET/PATH.",
    ),
]
LabelSet = Annotated[
    str | None,
    option(metavar="NAME", help="Label set; not needed if there is only one."),
]


@contextlib.contextmanager
def open_to_write(store: Path, *, dry_run: bool = False) -> Iterator[labelstore.Store]:
    """The store for a command that writes to it; for a dry run, to read, and refused where it may not be written."""
    import labelstore

    with labelstore.open(store, readonly=dry_run) as opened:
        if dry_run:
            opened.catalogue.check_writable()
        yield opened


Criterion: TypeAlias = Literal["max_probability", "ground_truth_probability"]
"""As `labelstore.calibration.Criterion`, which costs its imports."""
Seed = Annotated[
    int,
    option(min=0, metavar="N", help="Of the sample; another seed draws another."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done and write nothing.")
]


def use_cache(folder: Path | None) -> None:
    """Let this process, and those that it starts, keep what comes from object storage there."""
    if folder is not None:
        os.environ["LABELSTORE_CACHE"] = str(folder)


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """Who shares the image blocks of a command."""

    PANEL: ClassVar = WORK

    workers: Annotated[int | None, option(metavar="N", unset="this process, a few threads")] = None
    """Processes that share the image blocks; 1 is one block after the other."""
    dask: Annotated[str | None, option(metavar="ADDRESS")] = None
    """Dask scheduler whose workers share the image blocks, for example tcp://10.0.0.1:8786."""

    def mapped(self) -> AbstractContextManager[MapBlocks]:
        """Open the executor of blocks as the library takes it; UsageError for options that cannot be."""
        from labelstore.blocks.block_map import block_map

        return block_map(workers=self.workers, dask=self.dask)


def seconds(text: str, flag: str) -> float:
    """A time span given as 90, 90s, 30m, 1h30m or 2d, in seconds; UsageError for anything else.

    >>> seconds("90", "--max-time"), seconds("1h30m", "--max-time")
    (90.0, 5400.0)
    """
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if match is None or not text.strip():
        from labelstore.errors import UsageError

        raise UsageError(f"{flag} {text}: give a time span such as 90s, 30m or 1h30m")
    parts = zip(match.groups(), (86_400, 3_600, 60, 1), strict=True)
    return sum(float(number) * unit for number, unit in parts if number)


def parsed_size(text: str, flag: str) -> int:
    """Bytes that a text means: a number, with a unit of powers of 1000 or, as MiB, of 1024. UsageError for others.

    >>> parsed_size("285MB", "--budget"), parsed_size("1.5 GiB", "--budget"), parsed_size("1e6", "--budget")
    (285000000, 1610612736, 1000000)
    """
    from labelstore.errors import UsageError

    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*(?:([kKMGTP]?)(i?)[bB])?\s*", text)
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if not found or not number > 0:
        raise UsageError(f"{flag} {text[:40]!r}: give bytes, for example 285MB or 1.5GB")
    power = "kMGTP".index(found[2].replace("K", "k")) + 1 if found[2] else 0
    unit = 1024.0 if found[3] else 1000.0
    return round(number * unit**power)


def importable_here(source: str | None) -> str | None:
    """The option's value as it is; of a `package.module:function`, modules of the current folder are found too, last.

    An installed program has its own folder on sys.path and not the current one. Only for what a person wrote on the
    command line: a name out of a file is never looked for here.
    """
    if source is not None and ":" in source and not source.startswith(_LIBRARIES):
        from labelstore.teachers.named_networks import is_function

        here = str(Path.cwd())
        if is_function(source) and here not in sys.path:
            sys.path.append(here)
    return source
