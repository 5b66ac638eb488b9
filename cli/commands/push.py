"""`labelstore push`: a frozen store onto the Hugging Face Hub, or into a shared folder."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import DryRun, Json, Store
from cli.output import print_json, size
from cli.progress import Progress


def push(
    store: Store,
    repo: Annotated[
        str,
        typer.Argument(
            metavar="REPO",
            help="OWNER/NAME of a data set on the Hub, or a folder as ./PATH or file:///PATH.",
        ),
    ],
    revision: Annotated[
        str, typer.Option(metavar="BRANCH", help="Branch that gets the commit.")
    ] = "main",
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence",
            "--license",
            metavar="NAME",
            help="Licence that you give these labels, for example cc-by-4.0; the card repeats it.",
            show_default="not stated",
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Share a frozen store on the Hugging Face Hub, with a card; images never travel.

    Every file is compared with the manifest first. Keys, class names and what the catalogue keeps of paths on
    this machine become as public as the repository.
    """
    import labelstore
    from labelstore.sharing import hub

    with labelstore.open(store, readonly=True) as opened, Progress("check", "files") as progress:
        found = hub.push(
            opened,
            repo,
            revision=revision,
            private=private,
            licence=licence,
            dry_run=dry_run,
            progress=progress,
        )
    if json:
        print_json({"store": store, "dry_run": dry_run} | found.to_record())
        return
    what = f"{found.files:,} files, {size(found.bytes)}, to {found.where} ({found.revision})"
    if found.already:
        print(f"pushed before  {what}")
    else:
        print(f"{'would push' if dry_run else 'pushed'}  {what}")
    if found.commit is not None:
        print(f"commit  {found.commit}")
    print(f"root    {found.root}")
