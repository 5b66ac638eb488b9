"""Arguments and options that several commands share, so that a name means the same everywhere."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer


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
IMAGES = "DIR|LIST|SHARDS"
"""What `--images` takes: a folder, a list (.csv, .parquet), or tar shards; `labelstore.images` opens it."""
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
        help="Folder of the store, or the URL of a frozen one, such as s3://BUCKET/PATH.",
    ),
]
LabelSet = Annotated[
    str | None,
    typer.Option("--label-set", metavar="NAME", help="Label set; not needed if there is only one."),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Processes that share the image blocks; 1 is one block after the other.",
        show_default="this process, a few threads",
        rich_help_panel="How it works",
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="ADDRESS",
        help="Dask scheduler whose workers share the image blocks, for example tcp://10.0.0.1:8786.",
        rich_help_panel="How it works",
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, metavar="N", help="Of the sample; another seed draws another."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done and write nothing.")
]


def use_cache(folder: Path | None) -> None:
    """Let this process, and those that it starts, keep what comes from object storage there."""
    if folder is not None:
        os.environ["LABELSTORE_CACHE"] = str(folder)


def numbers(text: str, flag: str, *names: str) -> tuple[float, ...]:
    """As many numbers as there are names, with commas between them; UsageError for anything else.

    >>> numbers("0.08,1", "--scale", "LOW", "HIGH")
    (0.08, 1.0)
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != len(names):
        raise _usage_error(f"{flag} {text}: give {len(names)} numbers as {','.join(names)}")
    return found


def seconds(text: str, flag: str) -> float:
    """A time span given as 90, 90s, 30m, 1h30m or 2d, in seconds; UsageError for anything else.

    >>> seconds("90", "--max-time"), seconds("1h30m", "--max-time")
    (90.0, 5400.0)
    """
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if match is None or not text.strip():
        raise _usage_error(f"{flag} {text}: give a time span such as 90s, 30m or 1h30m")
    parts = zip(match.groups(), (86_400, 3_600, 60, 1), strict=True)
    return sum(float(number) * unit for number, unit in parts if number)


def _usage_error(message: str) -> Exception:
    from labelstore.errors import UsageError

    return UsageError(message)
