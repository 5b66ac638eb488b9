"""The one loop that leases, makes, stages and commits image blocks, whatever the job.

Any number of processes may run it on one group: each leases blocks that no other has. What was made is staged
(encoded, written and fsynced under temporary names) and committed in a thread of its own, several small blocks in one
transaction. Whatever stops the loop, blocks that were made are committed before it ends; a block whose lease was lost
is left to the process that took it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

from labelstore.blocks.block_map import BlockMap, map_in_threads
from labelstore.commit.block_jobs import BlockSource, BlockStream, LeasedBlock, MadeBlock
from labelstore.commit.lease_keeper import LEASE_SECONDS, LeaseKeeper, Patience, Progress
from labelstore.commit.staging import StagedBlock, commit_blocks
from labelstore.errors import LabelStoreError, LeaseLost

POLL_SECONDS, MOST_POLL_SECONDS = 0.5, 8.0
"""How often a process with nothing left to lease looks whether the others are done: ever less, since hundreds of them
that read the ledger twice a second would keep those at work from it."""
TOGETHER_SECONDS = 2.0
"""Blocks that take less than this together are committed together: what a kill costs at most."""
TOGETHER_BLOCKS = 64
"""Most blocks of one transaction."""
WORTH_SHARING = 8
"""The last blocks are not divided any more where all take less than TOGETHER_SECONDS / 8."""
COMMITS_BEHIND = 2
"""Blocks of a stream that may wait for the disk: each is held in memory."""

Staged: TypeAlias = tuple[MadeBlock, StagedBlock]


def work_through(
    source: BlockSource | BlockStream,
    *,
    progress: Progress = lambda done, total: None,
    waits: bool = True,
) -> list[Any]:
    """Make and commit the blocks of a job; returns the `result` of each that this call committed or cannot make.

    Returns when all are committed, by this process or others. Where the source maps its blocks to other processes,
    each of them leases, makes and commits its own. ConflictError where another process holds a block and does not
    finish it (at once, unless this one `waits`), and where the group is dropped or made again meanwhile. `progress`
    is told what is done and the total, in the unit of `source.size`; what it raises ends the job as an interruption
    does.
    """
    if isinstance(source, BlockSource) and isinstance(source.map_blocks, BlockMap):
        here = replace(source, map_blocks=map_in_threads)
        total = sum(map(source.size, source.blocks))
        return fill_in_parts(
            source.map_blocks, partial(_part, here), source.blocks, total, progress
        )
    return _Worker(source, progress, waits).run()


def part_of(progress: Progress, before: int, total: int) -> Progress:
    """Progress of a job that is a part of a larger one, of which so much is done before it."""
    return lambda done, _: progress(before + done, total)


def _part(source: BlockSource, blocks: Sequence[int]) -> tuple[int, list[Any]]:
    """In another process: some of the blocks; their size, and what came of them."""
    results = work_through(replace(source, blocks=blocks))
    return sum(map(source.size, blocks)), results


class _Worker:
    def __init__(self, source: BlockSource | BlockStream, progress: Progress, waits: bool) -> None:
        self._source, self._progress = source, progress
        self._catalogue = source.store.catalogue
        self._patience = Patience(self._catalogue, source.group, waits=waits)
        self._done: set[int] = set()
        """Blocks that are committed, by whichever process."""
        self._cannot: set[int] = set()
        """Blocks that cannot be made."""
        self._sizes = {block: source.size(block) for block in source.blocks}
        self._total, self._done_size = sum(self._sizes.values()), 0
        self._results: list[Any] = []
        self._staged: list[Staged] = []
        self._jobs: list[Future[list[MadeBlock] | None]] = []
        """Jobs of the committing thread, in order: stagings (None) and commits (what was committed)."""
        self._together = 1
        """Blocks that are leased and committed in one transaction."""
        self._since = time.monotonic()

    def run(self) -> list[Any]:
        """Lease, make, stage and commit until no block is open."""
        source = self._source
        self._keeper = LeaseKeeper(
            self._catalogue,
            source.group,
            source.blocks,
            source.most_shards,
            identity=source.identity,
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        idle = 0
        try:
            while open_blocks := self._open_blocks():
                if idle:
                    # the others are at work; a lease of one that was killed runs out
                    self._patience.wait(
                        open_blocks,
                        seconds=min(POLL_SECONDS * 1.3 ** min(idle - 1, 12), MOST_POLL_SECONDS),
                        most=2 * LEASE_SECONDS,
                    )
                before = len(self._done) + len(self._cannot)
                with closing(self._make(self._leased(open_blocks))) as made:
                    for block in made:
                        if block is not None:
                            self._take(block)
                        self._keep_up()
                        self._tell()
                self._finish()
                idle = idle + 1 if len(self._done) + len(self._cannot) == before else 0
        finally:
            # also after an error or an interruption, which is the one to tell: what was made is committed
            while self._jobs or self._staged:
                with suppress(LabelStoreError):
                    self._finish()
            self._thread.shutdown(wait=True)
            self._keeper.close()
        return self._results

    # -- which blocks ------------------------------------------------------------------------------

    def _open_blocks(self) -> list[int]:
        """Blocks that are still to be made, by whichever process."""
        source = self._source
        with self._catalogue.reading():
            committed = self._catalogue.ledger.committed(source.group)
            self._keeper.check_identity()
        rest = [block for block in source.blocks if block not in self._cannot]
        open_blocks = [block for block in rest if source.missing(block, committed.get(block, ()))]
        self._done = set(rest).difference(open_blocks)
        self._done_size = sum(self._sizes[block] for block in self._done | self._cannot)
        self._tell()
        return open_blocks

    def _leased(self, open_blocks: Sequence[int]) -> Iterator[LeasedBlock]:
        """Those that no other process has; a few are leased at once where they are made quickly."""
        wanted = list(open_blocks)
        while wanted:
            granted = self._keeper.acquire_of(wanted, self._together)
            if not granted:
                return
            for lease, committed in granted:
                wanted.remove(lease.block)
                missing = self._source.missing(lease.block, committed)
                if not missing:
                    self._keeper.forget(lease.block)
                    continue
                yield LeasedBlock(
                    lease=lease,
                    block=lease.block,
                    rows=self._source.layout.rows(lease.block),
                    missing=missing,
                    current=partial(self._keeper.current, lease),
                )

    # -- what is made of them ----------------------------------------------------------------------

    def _make(self, leased: Iterator[LeasedBlock]) -> Generator[MadeBlock | None, None, None]:
        source = self._source
        made: Iterable[MadeBlock | None] = (
            source.make(leased)
            if isinstance(source, BlockStream)
            else source.map_blocks(self._arrays, leased)
        )
        yield from made

    def _arrays(self, leased: LeasedBlock) -> MadeBlock | None:
        """In a thread of the source: one block, staged at once so that it leaves the memory."""
        assert isinstance(self._source, BlockSource)
        made = self._source.arrays(leased)
        if made.shards is None:
            return made
        self._stage(made)
        return None

    def _take(self, made: MadeBlock) -> None:
        if made.shards is not None:
            self._jobs.append(self._thread.submit(self._stage, made))
            return
        self._keeper.forget(made.leased.block)
        self._cannot.add(made.leased.block)
        self._done_size += self._sizes[made.leased.block]
        self._results.append(made.result)

    def _tell(self) -> None:
        self._progress(min(self._done_size + self._source.under_way, self._total), self._total)

    # -- staging and committing --------------------------------------------------------------------

    def _stage(self, made: MadeBlock) -> None:
        with suppress(LeaseLost):  # the process that took the block makes it
            self._staged.append((made, self._source.stage(made)))

    def _keep_up(self) -> None:
        """Begin a commit where enough is staged, wait where too much is; raises what one of them raised."""
        while self._jobs and (len(self._jobs) > COMMITS_BEHIND or self._jobs[0].done()):
            self._settle(self._jobs.pop(0).result())
        while self._jobs and len(self._staged) >= self._together:
            self._settle(self._jobs.pop(0).result())
        if len(self._staged) >= self._together:
            self._jobs.append(self._thread.submit(self._commit))

    def _finish(self) -> None:
        """Commit everything that was made; raises what one of the commits raised."""
        while self._jobs or self._staged:
            if not self._jobs:
                self._jobs.append(self._thread.submit(self._commit))
            self._settle(self._jobs.pop(0).result())
        self._tell()

    def _commit(self) -> list[MadeBlock]:
        """Commit some staged blocks and give up their leases, in one transaction; those whose lease was still ours."""
        staged = self._staged[: self._together]
        del self._staged[: len(staged)]
        blocks = [block for _, block in staged]
        outcomes = commit_blocks(self._source.store, blocks, release=True)
        committed = []
        for (made, _), refused in zip(staged, outcomes, strict=True):
            self._keeper.forget(made.leased.block, released=refused is None)
            if refused is None:
                committed.append(made)
        for refused in outcomes:
            # the process that took a lost lease commits the block, and if none did, the next turn
            if refused is not None and not isinstance(refused, LeaseLost):
                raise refused
        return committed

    def _settle(self, committed: Sequence[MadeBlock] | None) -> None:
        """Count what one transaction committed, and decide how many blocks share the next."""
        if not committed:
            return
        for made in committed:
            self._done.add(made.leased.block)
            self._done_size += self._sizes[made.leased.block]
            self._results.append(made.result)
            self._source.committed(made)
        if isinstance(self._source, BlockStream):
            return  # it looks ahead itself: what is leased beyond that, no other process can take
        now = time.monotonic()
        seconds, self._since = (now - self._since) / len(committed), now
        fitting = min(TOGETHER_BLOCKS, int(TOGETHER_SECONDS / max(seconds, 1e-6)))
        # never more than half of what is left, so that several processes end together; but a transaction of the last
        # blocks, made in a moment, costs more than waiting for them
        left = len(self._source.blocks) - len(self._done) - len(self._cannot)
        self._together = max(1, min(fitting, max(left // 2, fitting // WORTH_SHARING)))


R = TypeVar("R")

PARTS_PER_WORKER = 4
"""Enough that a slow worker does not keep the others waiting for long."""
MAX_PART = 64
"""Blocks of one part: progress is told part by part."""


def fill_in_parts(
    map_blocks: BlockMap,
    fill: Callable[[Sequence[int]], tuple[int, list[R]]],
    blocks: Sequence[int],
    total: int,
    progress: Progress,
) -> list[R]:
    """Have every block committed by `fill(blocks of one part)`: how many crops these are, and the results of some.

    Leases and fencing keep the workers apart, as they do any processes that write to one store; a part that is
    given out twice, because its worker died, is joined. `total` counts the crops of all blocks. Returns the results.
    """
    size = min(MAX_PART, max(1, len(blocks) // (PARTS_PER_WORKER * map_blocks.processes)))
    parts = [tuple(blocks[at : at + size]) for at in range(0, len(blocks), size)]
    done, results = 0, []
    progress(done, total)
    for crops, found in map_blocks(fill, parts):
        done += crops
        results += found
        progress(done, total)
    return results
