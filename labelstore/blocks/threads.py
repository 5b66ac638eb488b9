"""Per-block work on a few threads: decompressing, hashing and fsync leave the interpreter to others meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from labelstore.blocks.windows import in_order

T = TypeVar("T")
R = TypeVar("R")

THREADS = 2
"""Each holds one image block in memory."""


def map_in_threads(
    function: Callable[[T], R], items: Iterable[T], *, threads: int = THREADS
) -> Iterator[R]:
    """`map`, with the next few items under way while a result is used; results keep the order of items.

    After an error, or when the iterator is dropped, no further item is begun.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="blocks")
    try:
        yield from in_order(
            lambda item: pool.submit(function, item), Future.result, items, 2 * threads
        )
    finally:
        # an executor left to itself would first work through all that was submitted
        pool.shutdown(wait=True, cancel_futures=True)
