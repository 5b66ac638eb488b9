"""`labelstore freeze`: a store that never changes again, with a manifest to check every copy of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.options import DryRun, Json, Store
from cli.output import print_json, size
from cli.progress import Progress


def freeze(
    store: Store,
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TARGET]",
            help="Write a frozen copy there; STORE stays as it is.",
            show_default=False,
        ),
    ] = None,
    allow_incomplete: Annotated[
        bool,
        typer.Option("--allow-incomplete", help="Freeze label sets that are not finished, too."),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make a store read-only for good, with a manifest by which every copy can be checked.

    Every file is read and compared with the ledger. A frozen store can be read from a
    read-only folder, and `labelstore verify` checks a copy of it.
    """
    import labelstore
    from labelstore.care.freezing import what_freezes

    with labelstore.open(store, readonly=dry_run or target is not None) as opened:
        if dry_run:
            found = what_freezes(opened, target, allow_incomplete=allow_incomplete)
        else:
            with Progress("freeze", "files") as progress:
                found = labelstore.freeze(
                    opened, target, allow_incomplete=allow_incomplete, progress=progress
                )
    if json:
        print_json({"store": store, **asdict(found), "frozen": not dry_run})
        return
    what = f"{found.path}: {found.files:,} files, {size(found.bytes)}"
    if dry_run:
        print(f"would freeze {what}")
    else:
        print(f"{'frozen before' if found.already else 'frozen'}  {what}\nroot  {found.root}")
