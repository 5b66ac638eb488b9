"""Chosen crops as spans: what to decode of each image block so that no chunk column is decoded twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def spans(
    rows: NDArray[np.int64], columns: NDArray[np.int64], images_per_shard: int
) -> Iterator[tuple[int, range, list[int]]]:
    """(image block, chunk columns, positions in `rows`): block after block, each chunk column in one span at most.

    `rows` (n,) are image rows in any order, also several times; `columns` (n, m) the chunk columns that each
    wants. An image is in one span, with all columns from its first to its last.

    >>> rows, columns = np.array([9, 0, 8, 1]), np.array([[0, 1], [2, 3], [2, 2], [0, 0]])
    >>> list(spans(rows, columns, 8))
    [(0, range(0, 1), [3]), (0, range(2, 4), [1]), (1, range(0, 3), [0, 2])]
    """
    if not columns.size:
        return
    blocks = rows // images_per_shard
    first, last = columns.min(axis=1), columns.max(axis=1)
    block, start, stop = -1, 0, 0
    chosen: list[int] = []
    for position in np.lexsort((first, blocks)).tolist():
        if chosen and (blocks[position] != block or first[position] > stop):
            yield block, range(start, stop), chosen
            chosen = []
        if not chosen:
            block, start, stop = int(blocks[position]), int(first[position]), 0
        stop = max(stop, int(last[position]) + 1)
        chosen.append(position)
    yield block, range(start, stop), chosen
