"""`labelstore pull`: a shared store onto this disk, every file checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import DryRun, Json
from cli.output import print_json, size
from cli.progress import Progress


def pull(
    repo: Annotated[
        str,
        typer.Argument(
            metavar="REPO",
            help="OWNER/NAME of a data set on the Hub, or a folder as ./PATH or file:///PATH.",
        ),
    ],
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="Folder to make; it must not exist.")
    ],
    revision: Annotated[
        str, typer.Option(metavar="REV", help="Branch, tag or commit to pull.")
    ] = "main",
    expect_root: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256", help="Refuse a store with another root digest than this one."
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Fetch a shared store from the Hugging Face Hub and check every file of it.

    The revision is resolved to one commit. The store has its name when all files are what its manifest says.
    """
    from labelstore.sharing import hub

    with Progress("pull", "files") as progress:
        found = hub.pull(
            repo,
            store,
            revision=revision,
            expect_root=expect_root,
            dry_run=dry_run,
            progress=progress,
        )
    if json:
        print_json({"store": store, "dry_run": dry_run} | found.to_record())
        return
    would = "would pull" if dry_run else "pulled"
    print(f"{would}  {found.files:,} files, {size(found.bytes)}, from {found.where}")
    print(f"commit  {found.commit}\nroot    {found.root}")
