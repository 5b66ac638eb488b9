"""Filling one group block by block: several processes share the blocks, a killed one leaves nothing half done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from labelstore.catalogue.records import Lease
from labelstore.errors import ConflictError, LeaseLost
from labelstore.schema import Layout
from labelstore.store.leases import LEASE_SECONDS, LeaseKeeper, Progress

if TYPE_CHECKING:
    from labelstore.store.store import Store

POLL_SECONDS = 0.5
"""How often a process with nothing left to lease looks whether the others are done."""


def fill_blocks(
    store: Store,
    group: str,
    blocks: Sequence[int],
    layout: Layout,
    work: Callable[[Lease, Sequence[int]], None],
    progress: Progress,
) -> None:
    """Call `work(lease, missing crop shards)` for every block that is not committed; `work` commits them.

    Returns when all `blocks` are committed, by this process or another. ConflictError where another
    process holds a block and does not finish it. `progress` is told crops done and crops in all.
    """
    whole = layout.num_crop_shards

    def num_crops(block: int) -> int:
        return len(layout.rows(block)) * layout.num_crops

    total = sum(map(num_crops, blocks))
    waited = 0.0
    nothing_free = False
    keeper = LeaseKeeper(store.catalogue, group, blocks, whole)
    try:
        while True:
            committed = store.catalogue.committed(group)
            open_blocks = [b for b in blocks if len(committed.get(b, ())) < whole]
            done = total - sum(map(num_crops, open_blocks))
            progress(done, total)
            if not open_blocks:
                return
            if nothing_free:
                # the others are at work; a lease of one that was killed runs out
                if waited > 2 * LEASE_SECONDS:
                    raise ConflictError(
                        f"{group}: another process holds image block {open_blocks[0]} and does not "
                        "finish it; run the command again later"
                    )
                time.sleep(POLL_SECONDS)
                waited += POLL_SECONDS
            nothing_free = True
            while (lease := keeper.acquire()) is not None:
                there = committed.get(lease.block, ())
                try:
                    work(lease, [shard for shard in range(whole) if shard not in there])
                except LeaseLost:
                    keeper.forget(lease.block)  # whoever took it commits it
                    continue
                keeper.forget(lease.block)
                done += num_crops(lease.block)
                progress(min(done, total), total)
                waited, nothing_free = 0.0, False
    finally:
        keeper.close()
