"""Jobs that write: every worker leases and commits its own blocks, the parent only hands them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from labelstore.blocks.shipping import BlockMap
from labelstore.commit.lease_keeper import Progress

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
