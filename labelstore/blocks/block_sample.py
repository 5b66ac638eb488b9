"""A part of the image blocks, spread evenly: always the same ones, so that figures of a part can be repeated."""

from __future__ import annotations

from collections.abc import Sequence

from labelstore.errors import UsageError


def share_of_blocks(blocks: Sequence[int], share: float) -> tuple[int, ...]:
    """A share of the blocks, to the nearest whole block and at least one; UsageError unless it is above 0 and up to 1.

    >>> share_of_blocks(range(10), 0.7)
    (0, 1, 2, 4, 5, 7, 8)
    """
    if not 0 < share <= 1:
        raise UsageError(f"share {share}: give a share of the image blocks above 0 and up to 1")
    return at_most(blocks, max(1, round(share * len(blocks))))


def at_most(blocks: Sequence[int], most: int) -> tuple[int, ...]:
    """So many of the blocks, or all of them.

    >>> at_most(range(10), 4), at_most([3, 5], 4)
    ((0, 2, 5, 7), (3, 5))
    """
    count = min(len(blocks), max(most, 1))
    return tuple(blocks[at * len(blocks) // count] for at in range(count))
