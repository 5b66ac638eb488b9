"""`labelstore verify`: is everything that was committed still there, byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Dask, Json, Processes, Store
from cli.output import print_json, size
from cli.progress import Progress, duration
from cli.wording import spoken

if TYPE_CHECKING:
    from labelstore.care.leftovers import Leftover
    from labelstore.care.verify_report import Level, VerifyReport

DAMAGE = 3


def verify(
    store: Store,
    fast: Annotated[
        bool, typer.Option("--fast", help="Only look whether files are there, and their size.")
    ] = False,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Also decode every value: ranges, sums, order, boxes in images."
        ),
    ] = False,
    workers: Processes = None,
    dask: Dask = None,
    json: Json = False,
) -> None:
    """Compare every committed shard, the metadata and the catalogue with their digests.

    One line per problem, with what to do about it; exit code 3 if there is one. Files that no
    catalogue row names are listed too, but are no damage. Writes nothing.
    """
    from labelstore.blocks.block_map import block_map
    from labelstore.care.verification import verify as run
    from labelstore.errors import UsageError

    if fast and deep:
        raise UsageError("--fast and --deep together: give one of them, or neither")
    level: Level = "fast" if fast else "deep" if deep else "digests"
    with (
        block_map(workers=workers, dask=dask) as map_blocks,
        Progress("verify", "shards") as progress,
    ):
        report = run(store, level, map_blocks=map_blocks, progress=progress)
    if json:
        print_json(report.to_record())
    else:
        _print(report)
    if not report.is_sound:
        raise typer.Exit(DAMAGE)


def _print(report: VerifyReport) -> None:
    for problem in report.problems:
        print(spoken(str(problem)))
    for found in report.leftovers:
        print(_left_over(found, report.store))
    state = "frozen, " if report.frozen else ""
    count = len(report.problems)
    print(
        f"{report.store}: {state}{report.shards:,} shards, {report.files:,} files, {size(report.bytes)} "
        f"in {duration(report.seconds)}: {'sound' if not count else f'{count} problems'}"
    )


def _left_over(found: Leftover, store: str) -> str:
    advice = (
        "not a file that labelstore writes: move it elsewhere"
        if found.kind == "foreign"
        else f"no damage; `labelstore gc {store}` removes it after an hour"
    )
    return f"{store}/{found.path}: {found.kind} file that nothing refers to, {found.bytes:,} bytes; {advice}"
