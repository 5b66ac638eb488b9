"""Commands between stores: `labelstore push` and `pull` share one, `merge` makes one of several."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import answer, say, size
from cli.progress import Progress
from cli.shared_options import DryRun, Json, Store

if TYPE_CHECKING:
    from labelstore.sharing.merge import MergedLabels

Repo = Annotated[
    str,
    typer.Argument(
        metavar="REPO",
        help="OWNER/NAME of a data set on the Hub, or a folder as ./PATH or file:///PATH.",
    ),
]


def push(
    store: Store,
    repo: Repo,
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
        pushed = hub.push(
            opened,
            repo,
            revision=revision,
            private=private,
            licence=licence,
            dry_run=dry_run,
            progress=progress,
        )
    verb = "pushed before" if pushed.already else "would push" if dry_run else "pushed"
    answer(
        {"store": store, "dry_run": dry_run} | pushed.to_record(),
        f"{verb}  {pushed.files:,} files, {size(pushed.bytes)}, to {pushed.where} ({pushed.revision})",
        *([] if pushed.commit is None else [f"commit  {pushed.commit}"]),
        f"root    {pushed.root}",
        json=json,
    )


def pull(
    repo: Repo,
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
        pulled = hub.pull(
            repo,
            store,
            revision=revision,
            expect_root=expect_root,
            dry_run=dry_run,
            progress=progress,
        )
    answer(
        {"store": store, "dry_run": dry_run} | pulled.to_record(),
        f"{'would pull' if dry_run else 'pulled'}  {pulled.files:,} files, {size(pulled.bytes)}, from {pulled.where}",
        f"commit  {pulled.commit}\nroot    {pulled.root}",
        json=json,
    )


def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The merged store; made here.")],
    stores: Annotated[
        list[Path],
        typer.Argument(
            metavar="STORE",
            help="Two or more stores, working or frozen, also s3://BUCKET/PATH; they stay as they are.",
        ),
    ],
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Array format of OUT: zarr or hdf5.",
            show_default="the first store's",
        ),
    ] = None,
    images_per_shard: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Images of OUT that lie in one file.",
            show_default="the largest of the stores'",
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make one store of stores that were made on different machines for parts of the same data set.

    Crop plans, classes, teachers' weights and codecs must be equal, and an image in several stores the same file with
    the same labels. Run again, it goes on where it was stopped and takes what the stores have got since.
    """
    import labelstore

    with Progress("merge", "shards") as progress:
        merged = labelstore.merge(
            out,
            [str(path) for path in stores],
            backend=backend,
            images_per_shard=images_per_shard,
            dry_run=dry_run,
            progress=progress,
        )
    counts = f"{merged.num_images:,} images"
    if merged.overlapping:
        counts += f", {merged.overlapping:,} of them in more than one store"
    if merged.num_bad:
        counts += f", {merged.num_bad:,} left out"
    fields = {"would make" if dry_run else "merged": f"{merged.path}: {counts}"}
    if not dry_run:
        fields["shards"] = f"{merged.shards:,} now, {merged.already:,} before"
    fields |= {f"label set {labels.name}": _described(labels) for labels in merged.label_sets}
    fields |= {f"mask {name}": "as in all of them" for name in merged.masks}
    answer({**asdict(merged), "complete": merged.is_complete}, fields, json=json)
    if not json:
        for note in merged.notes:
            say(note)


def _described(labels: MergedLabels) -> str:
    text = " + ".join(f"{count:,}" for count in labels.from_stores) + " images"
    if labels.compared:
        text += f"; {labels.compared:,} crops compared, largest difference {labels.largest_difference:.2g}"
    return f"{text}; {labels.lacking:,} images lack labels" if labels.lacking else text
