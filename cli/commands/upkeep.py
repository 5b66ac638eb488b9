"""Commands that keep a store in order: `labelstore gc`, `leases`, `drop`, `freeze`, `migrate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.output import answer, duration, say, size
from cli.progress import Progress
from cli.shared_options import DryRun, Json, Store, open_to_write


def gc(store: Store, dry_run: DryRun = False, json: Json = False) -> None:
    """Remove temporary files and orphans that killed workers left behind an hour ago or more.

    Spools of committed blocks go, too. What the ledger names is never touched, nor what a worker with a live
    lease may be writing, nor files that labelstore does not write.
    """
    import labelstore

    with labelstore.open(store, readonly=dry_run) as opened:
        collected = labelstore.gc(opened, dry_run=dry_run)
    if not json:
        for file, reason in collected.kept:
            say(f"kept {store / file.path}: {reason}")
    verb = "would remove" if dry_run else "removed"
    answer(
        {"store": store} | collected.to_record(),
        *(f"{store / each.path}  {each.kind}, {each.bytes:,} bytes" for each in collected.removed),
        f"{verb} {len(collected.removed):,} files, {size(collected.bytes)}",
        json=json,
    )


def leases(
    store: Store,
    break_: Annotated[
        list[str] | None,
        typer.Option(
            "--break",
            metavar="PROCESS",
            help="Take the leases of this worker away, as listed: 'process 4321 on node7'; may be given several times.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """List the image blocks that workers hold, until when; --break frees those of a worker that will not come back.

    A lease that is not renewed runs out by itself after two minutes, and a dead worker's of this machine is not waited
    for at all. A worker that is alive after all leases again: nothing that is committed is lost.
    """
    import labelstore
    from labelstore.care.held_leases import break_leases, held_leases

    with (
        open_to_write(store, dry_run=dry_run) if break_ else labelstore.open(store, readonly=True)
    ) as opened:
        listed = break_leases(opened, break_, dry_run=dry_run) if break_ else held_leases(opened)
    verb = "" if not break_ else "would break: " if dry_run else "broken: "
    lines = []
    for each in listed:
        left = duration(abs(each.seconds_left)) if abs(each.seconds_left) < 1e9 else "years"
        when = f"expired {left} ago" if each.seconds_left <= 0 else f"{left} left"
        lines.append(f"{verb}{each.group} block {each.block}  {each.process}  {each.state}, {when}")
    record = {"store": store, "leases": listed, "broken": bool(break_) and not dry_run}
    answer(record, *(lines or ["no leases"]), json=json)


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
    from labelstore.care.dropping import KINDS, what_drops
    from labelstore.care.dropping import drop as drop_it
    from labelstore.errors import UsageError

    path = store
    if kind not in KINDS and name in KINDS:
        path, kind, name = Path(kind), name, str(store)
    with open_to_write(path, dry_run=dry_run) as opened:
        dropped = what_drops(opened, kind, name)
        what = f"{kind} {name} of {path}: {dropped.shards:,} shards, {size(dropped.bytes)}"
        if not dry_run:
            if not yes:
                raise UsageError(f"this deletes {what}; give --yes to do it")
            dropped = drop_it(opened, kind, name)
    for note in dropped.notes:
        say(note)
    record = {"store": path, **asdict(dropped), "dropped": not dry_run}
    answer(record, f"{'would drop' if dry_run else 'dropped'} {what}", json=json)


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

    freezes = what_freezes if dry_run else labelstore.freeze
    with (
        labelstore.open(store, readonly=dry_run or target is not None) as opened,
        Progress("freeze", "files") as progress,
    ):
        frozen = freezes(opened, target, allow_incomplete=allow_incomplete, progress=progress)
    what = f"{frozen.path}: {frozen.files:,} files, {size(frozen.bytes)}"
    did = f"{'frozen before' if frozen.already else 'frozen'}  {what}\nroot  {frozen.root}"
    record = {"store": store, **asdict(frozen), "frozen": not dry_run}
    answer(record, f"would freeze {what}" if dry_run else did, json=json)


def migrate(store: Store, dry_run: DryRun = False, json: Json = False) -> None:
    """Bring a store of an older version up to date; one that is up to date stays as it is.

    Until then an older store can be read, and nothing can be written to it. Labels are not touched, and a
    command that is killed leaves the store as it was or up to date.
    """
    from labelstore.care.migration import migrate as run

    done = run(store, dry_run=dry_run)
    verb = "would bring" if dry_run else "brought"
    did = f"{verb} {store} up to date: revision {', '.join(done.revisions)}"
    nothing = f"{store} is up to date: nothing to do"
    answer({"store": store, **asdict(done)}, did if done.revisions else nothing, json=json)
