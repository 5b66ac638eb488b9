"""Per-block work on a few threads: decompressing, hashing and fsync leave the interpreter to others meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

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
    waiting = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="blocks")
    try:
        running: list[Future[R]] = [
            pool.submit(function, item) for item in islice(waiting, 2 * threads)
        ]
        while running:
            result = running.pop(0).result()
            running += [pool.submit(function, item) for item in islice(waiting, 1)]
            yield result
    finally:
        # an executor left to itself would first work through all that was submitted
        pool.shutdown(wait=True, cancel_futures=True)
