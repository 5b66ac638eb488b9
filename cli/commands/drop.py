"""`labelstore drop`: remove a label set, a mask or a crop plan."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.options import DryRun, Json
from cli.output import print_json, say, size


def drop(
    kind: Annotated[
        str, typer.Argument(metavar="label-set|mask|plan", help="What to drop.", show_default=False)
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.", show_default=False)],
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="Folder of the store.", show_default=False)
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; what is dropped is gone.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove a label set, a mask or a crop plan, and free its space.

    A crop plan goes only after its label sets and masks. STORE may also come first.
    """
    import labelstore
    from labelstore.care.dropping import KINDS, what_drops
    from labelstore.care.dropping import drop as drop_it
    from labelstore.errors import UsageError

    path = store
    if kind not in KINDS and name in KINDS:
        path, kind, name = Path(kind), name, str(store)
    with labelstore.open(path, readonly=dry_run) as opened:
        found = what_drops(opened, kind, name)
        what = f"{kind} {name} of {path}: {found.shards:,} shards, {size(found.bytes)}"
        if not dry_run:
            if not yes:
                raise UsageError(f"this deletes {what}; give --yes to do it")
            found = drop_it(opened, kind, name)
    for note in found.notes:
        say(note)
    if json:
        print_json({"store": path, **asdict(found), "dropped": not dry_run})
    else:
        print(f"{'would drop' if dry_run else 'dropped'} {what}")
