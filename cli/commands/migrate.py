"""`labelstore migrate`: bring a store of an older version up to date."""

from __future__ import annotations

from dataclasses import asdict

from cli.options import DryRun, Json, Store
from cli.output import print_json


def migrate(store: Store, dry_run: DryRun = False, json: Json = False) -> None:
    """Bring a store of an older version up to date; one that is up to date stays as it is.

    Until then an older store can be read, and nothing can be written to it. Labels are not touched, and a
    command that is killed leaves the store as it was or up to date.
    """
    from labelstore.care.migration import migrate as run

    done = run(store, dry_run=dry_run)
    if json:
        print_json({"store": store, **asdict(done)})
    elif done.revisions:
        verb = "would bring" if dry_run else "brought"
        print(f"{verb} {store} up to date: revision {', '.join(done.revisions)}")
    else:
        print(f"{store} is up to date: nothing to do")
