"""Whether the files of labels that are all committed are still there, as far as their sizes say."""

from __future__ import annotations

from labelstore.errors import DamagedShard
from labelstore.store import Store


def check_committed_files(store: Store, group: str) -> None:
    """DamagedShard where a file that the ledger names is missing or of another size."""
    for row in store.catalogue.ledger.shards(group):
        for file in row.files:
            path = store.arrays.root / file.key
            size = path.stat().st_size if path.is_file() else None
            if size != file.size:
                found = "is missing" if size is None else f"has {size} of {file.size} bytes"
                raise DamagedShard(
                    f"{path} {found}: every label was made, but run "
                    f"`labelstore.verify({str(store.path)!r})`, then "
                    f"`labelstore.repair(labelstore.open({str(store.path)!r}), images=DIR)`"
                )
