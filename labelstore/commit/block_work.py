"""Filling one group block by block: several processes share the blocks, a killed one leaves nothing half done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from labelstore.blocks.threads import map_in_threads
from labelstore.catalogue.records import Lease
from labelstore.commit.lease_keeper import LEASE_SECONDS, LeaseKeeper, Patience, Progress
from labelstore.commit.staging import StagedBlock, commit_blocks
from labelstore.errors import ConflictError, LeaseLost
from labelstore.store.layout import Layout

if TYPE_CHECKING:
    from labelstore.store.store import Store

POLL_SECONDS = 0.5
"""How often a process with nothing left to lease looks whether the others are done."""

TOGETHER_SECONDS = 2.0
"""Blocks that take less than this together are committed together: what a kill costs at most."""
TOGETHER_BLOCKS = 64
"""Most blocks of one transaction."""


def fill_blocks(
    store: Store,
    group: str,
    blocks: Sequence[int],
    layout: Layout,
    work: Callable[[Lease, Sequence[int]], StagedBlock],
    progress: Progress,
    *,
    identity: str | None = None,
) -> None:
    """Stage (`work(lease, missing crop shards)`) and commit every block that is not committed.

    Blocks are committed in groups that take about `TOGETHER_SECONDS`, each group in one transaction.

    Returns when all `blocks` are committed, by this process or another. ConflictError where another
    process holds a block and does not finish it, and where the group is dropped or made anew meanwhile;
    `identity` is what it was when the caller looked at it. `progress` is told crops done and crops in all.
    """
    whole = layout.num_crop_shards

    def num_crops(block: int) -> int:
        return len(layout.rows(block)) * layout.num_crops

    total = sum(map(num_crops, blocks))
    nothing_free = False
    patience = Patience(store.catalogue, group)
    keeper = LeaseKeeper(store.catalogue, group, blocks, whole, identity=identity)
    try:
        while True:
            committed = store.catalogue.ledger.committed(group)
            open_blocks = [b for b in blocks if len(committed.get(b, ())) < whole]
            done, left = total - sum(map(num_crops, open_blocks)), len(open_blocks)
            progress(done, total)
            if not open_blocks:
                return
            if nothing_free:
                # the others are at work; a lease of one that was killed runs out
                patience.wait(open_blocks, seconds=POLL_SECONDS, most=2 * LEASE_SECONDS)
            nothing_free = True
            together = 1
            while leases := keeper.acquire_blocks(together):
                started = time.monotonic()
                missing = [
                    [s for s in range(whole) if s not in committed.get(lease.block, ())]
                    for lease in leases
                ]
                outcomes = _stage_and_commit(store, list(zip(leases, missing, strict=True)), work)
                seconds = (time.monotonic() - started) / len(leases)
                keeper.forget(*(lease.block for lease in leases))
                for block, refused in outcomes.items():
                    if isinstance(refused, LeaseLost):
                        continue  # whoever took the lease commits it, and if nobody did, the next turn
                    if refused is not None:
                        raise refused
                    done += num_crops(block)
                    left -= 1
                    nothing_free = False
                progress(min(done, total), total)
                # never more than half of what is left, so that several processes end together
                fitting = min(TOGETHER_BLOCKS, int(TOGETHER_SECONDS / max(seconds, 1e-6)))
                together = max(1, min(fitting, left // 2))
    finally:
        keeper.close()


def _stage_and_commit(
    store: Store,
    blocks: Sequence[tuple[Lease, Sequence[int]]],
    work: Callable[[Lease, Sequence[int]], StagedBlock],
) -> dict[int, LeaseLost | ConflictError | None]:
    """Compute blocks on a few threads and commit them together: per block None, or why it was not committed."""
    staged: list[StagedBlock] = []

    def stage(block: tuple[Lease, Sequence[int]]) -> None:
        staged.append(work(*block))

    try:
        for _ in map_in_threads(stage, blocks):
            pass
    finally:
        # also after an error or an interruption: what was computed is kept
        outcomes = commit_blocks(store, staged)
    return {block.lease.block: refused for block, refused in zip(staged, outcomes, strict=True)}
