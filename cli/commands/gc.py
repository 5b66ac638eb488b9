"""`labelstore gc`: remove what killed workers left behind."""

from __future__ import annotations

from cli.options import DryRun, Json, Store
from cli.output import print_json, say, size


def gc(store: Store, dry_run: DryRun = False, json: Json = False) -> None:
    """Remove temporary files and orphans that killed workers left behind an hour ago or more.

    Spools of committed blocks go, too. What the ledger names is never touched, nor what a worker with a live
    lease may be writing, nor files that labelstore does not write.
    """
    import labelstore

    with labelstore.open(store, readonly=dry_run) as opened:
        collected = labelstore.gc(opened, dry_run=dry_run)
    if json:
        print_json({"store": store} | collected.to_record())
        return
    for found in collected.removed:
        print(f"{store / found.path}  {found.kind}, {found.bytes:,} bytes")
    for found, reason in collected.kept:
        say(f"kept {store / found.path}: {reason}")
    verb = "would remove" if dry_run else "removed"
    print(f"{verb} {len(collected.removed):,} files, {size(collected.bytes)}")
