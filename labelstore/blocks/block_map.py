"""One function over many image blocks: in threads, on a pool of processes, or on a Dask cluster.

with block_map(dask="tcp://10.0.0.1:8786") as map_blocks:
    histogram(labels, map_blocks=map_blocks)
"""

from __future__ import annotations

import pickle
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar, cast

from labelstore.blocks.crop_slab import in_order
from labelstore.errors import LabelStoreError, UsageError

MAX_WORKERS = 1024


@contextmanager
def block_map(*, workers: int | None = None, dask: str | None = None) -> Iterator[MapBlocks]:
    """How per-block work is spread: a `map` whose results come in the order of the items.

    `workers` is a number of processes of this machine: 1 is this process alone, one block after the other;
    None is this process with a few threads. `dask` is the address of a Dask scheduler, whose workers must
    see the store under the same path. Errors are raised as they were in the worker; StorageError where the
    scheduler does not answer, IncompleteError where workers die.
    """
    if dask is not None and workers is not None:
        raise UsageError(
            f"`workers={workers}` and `dask={dask}`: a cluster has its own workers, give one"
        )
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise UsageError(f"`workers={workers}`: 1 to {MAX_WORKERS}")
    if dask is not None:
        from labelstore.blocks.dask_cluster import DaskMap

        with DaskMap(dask) as cluster:
            yield cluster
    elif workers is None:
        from labelstore.blocks.block_map import map_in_threads

        yield map_in_threads
    elif workers == 1:
        yield map
    else:
        from labelstore.blocks.process_pool import ProcessMap

        with ProcessMap(workers) as pool:
            yield pool


MapBlocks: TypeAlias = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or something that works on several items at once and yields results in their order."""

T = TypeVar("T")
R = TypeVar("R")

_opening = threading.Lock()


class BlockMap(ABC):
    """A `map` on other processes."""

    @property
    @abstractmethod
    def processes(self) -> int:
        """How many items are worked on at once."""

    @abstractmethod
    def __call__(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in the order of `items`; function, items and results can be pickled."""


@dataclass(frozen=True)
class Parcel:
    """A function on its way to the workers."""

    sender: str
    """Name of the machine that sends it."""
    data: bytes


def packed(function: Callable[[T], R]) -> Parcel:
    """The function, ready to travel."""
    return Parcel(socket.gethostname(), pickle.dumps(function, pickle.HIGHEST_PROTOCOL))


def call(parcel: Parcel, item: T) -> Any:  # noqa: ANN401 - whatever the function returns
    """In the worker: the function's value for one item."""
    with _opening:  # threads of one worker share a store
        function = _unpacked(parcel)
    return function(item)


@lru_cache(maxsize=2)
def _unpacked(parcel: Parcel) -> Callable[[Any], Any]:
    try:
        function = pickle.loads(parcel.data)
    except LabelStoreError as error:
        if parcel.sender == socket.gethostname():
            raise
        raise type(error)(f"{error} (on worker machine {socket.gethostname()})") from None
    return cast("Callable[[Any], Any]", function)


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
