"""`labelstore migrate`: an older store becomes one of this version, or stays what it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from labelstore.catalogue import Catalogue
from labelstore.store.opening import MANIFEST_FILE, catalogue_url, open_store
from labelstore.store.untrusted_store import refuse_links


@dataclass(frozen=True, kw_only=True)
class Migration:
    """What was done to a store's catalogue, or would be."""

    path: Path
    revisions: tuple[str, ...]
    """Those that it lacked, oldest first; empty where it was up to date."""
    dry_run: bool


def migrate(path: str | Path, *, dry_run: bool = False) -> Migration:
    """Bring the store at `path` up to date; does nothing to one that is.

    The catalogue changes in one transaction, then the arrays' metadata as it always does; shards are not
    touched. After a kill the store is the old one or the new one, and the same call finishes. ConflictError while
    somebody writes to it, StorageError where it is frozen or cannot be written.
    """
    path = Path(path)
    refuse_links(path)
    url = catalogue_url(path)
    revisions = Catalogue.migrate(url, frozen_mark=path / MANIFEST_FILE, dry_run=dry_run)
    if not dry_run:
        with open_store(path, checked=False) as store:
            if not store.catalogue.readonly:
                store.write_metadata()  # also finishes what a kill after the transaction left
    return Migration(path=path, revisions=revisions, dry_run=dry_run)
