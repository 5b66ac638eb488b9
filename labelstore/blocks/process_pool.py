"""Workers on this machine: processes that are started afresh, so that no lock or thread is inherited."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Self, TypeVar

from labelstore.blocks.block_map import BlockMap, call, packed
from labelstore.blocks.crop_slab import in_order
from labelstore.errors import IncompleteError

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2
"""Items per worker that are under way or wait for one."""


class ProcessMap(BlockMap):
    """A `map` on so many processes; a context manager that stops them.

    They are spawned: a forked one would share the parent's threads' locks, and Zarr's event loop.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=follow_parent
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # what runs is finished: a block that is computed is worth its commit
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def processes(self) -> int:
        """Worker processes."""
        return self._workers

    def __call__(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in the order of `items`. IncompleteError where a worker dies."""
        parcel = packed(function)
        running: set[Future[Any]] = set()

        def submit(item: T) -> Future[Any]:
            future = self._pool.submit(partial(call, parcel), item)
            running.add(future)
            return future

        def result(future: Future[Any]) -> Any:  # noqa: ANN401 - whatever the function returns
            running.discard(future)
            return future.result()

        try:
            yield from in_order(submit, result, items, AHEAD * self.processes)
        except BrokenProcessPool:
            raise IncompleteError(
                f"one of {self.processes} worker processes was killed, perhaps for want of memory: what was "
                "committed is kept; run the command again, with fewer `workers`"
            ) from None
        finally:
            for future in running:
                future.cancel()


def follow_parent() -> None:
    """In a spawned process: leave Ctrl-C to the parent, which ends in order, and end with it if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), name="parent", daemon=True).start()


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    # others that the parent forked may keep the pipe open by which `join` notices its end
    while os.getppid() == parent.pid:
        parent.join(1.0)
    os._exit(1)  # no clean-up: files under temporary names are what a kill leaves, too
