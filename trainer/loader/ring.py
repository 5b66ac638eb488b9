"""Threads that fill numbered batches ahead of one consumer, a bounded number of them at a time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

B = TypeVar("B")


class BatchRing(Generic[B]):
    """Batches 0, 1, ... of `sizes` items each. Who fills what when never shows in what is filled.

    `open_batch(batch)` is called once per batch, in order, one at a time; `fill(opened, item)` for every item
    of it, from any thread. At most `depth` batches are open: the consumer's and those being filled. The first
    error in the order of batches and items is what `get` raises for its batch; no later batch is begun.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        open_batch: Callable[[int], B],
        fill: Callable[[B, int], None],
        *,
        depth: int,
        workers: int,
        at_start: Callable[[], None] = lambda: None,
    ) -> None:
        """`at_start` runs first in every thread; the constructor returns when all have done so."""
        self._state = _State(sizes, open_batch, fill, depth)
        started = threading.Barrier(workers + 1)
        threads = [
            threading.Thread(
                target=_work,
                args=(self._state, at_start, started),
                # joined by the finalizer, which also runs at exit; others would block the exit before it
                daemon=True,
                name=f"labelstore-loader-{number}",
            )
            for number in range(workers)
        ]
        for thread in threads:
            thread.start()
        started.wait()
        # the threads know the state only, so that dropping the ring ends them
        self._finalizer = weakref.finalize(self, _stop, self._state, threads)

    def get(self, batch: int) -> B:
        """The filled batch; blocks until it is there. Raises what filling it raised."""
        return self._state.get(batch)

    def release(self, batch: int) -> None:
        """The consumer is done with this batch and all before it."""
        with self._state.changed:
            self._state.released = max(self._state.released, batch + 1)
            self._state.changed.notify_all()

    def close(self) -> None:
        """End the threads; each finishes the item that it is at."""
        self._finalizer()


class _State(Generic[B]):
    def __init__(
        self,
        sizes: Sequence[int],
        open_batch: Callable[[int], B],
        fill: Callable[[B, int], None],
        depth: int,
    ) -> None:
        self.sizes, self.open_batch, self.fill, self.depth = sizes, open_batch, fill, depth
        self.changed = threading.Condition()
        self.stopped = False
        self.released = 0
        self.last = len(sizes)
        self.next_batch, self.next_item = 0, 0
        self.opened: dict[int, B] = {}
        self.missing: dict[int, int] = {}
        self.errors: dict[int, tuple[int, BaseException]] = {}

    def get(self, batch: int) -> B:
        with self.changed:
            while not self.stopped and self.missing.get(batch) != 0:
                self.changed.wait()
            if batch in self.errors:
                raise self.errors[batch][1]
            if self.stopped:
                raise RuntimeError("this loader is closed")
            del self.missing[batch]
            return self.opened.pop(batch)

    def take(self) -> tuple[B, int, int] | None:
        """The next item to fill, or None when there is nothing left to do."""
        with self.changed:
            while not self.stopped and self.next_batch < self.last:
                batch = self.next_batch
                if batch >= self.released + self.depth:
                    self.changed.wait()
                    continue
                if self.next_item == 0 and not self._open(batch):
                    return None
                if self.sizes[batch] == 0:
                    self.next_batch += 1
                    continue
                item = self.next_item
                self.next_item += 1
                if self.next_item == self.sizes[batch]:
                    self.next_batch, self.next_item = batch + 1, 0
                return self.opened[batch], batch, item
            return None

    def _open(self, batch: int) -> bool:
        self.missing[batch] = self.sizes[batch]
        try:
            self.opened[batch] = self.open_batch(batch)
        except BaseException as error:  # noqa: BLE001 belongs to the consumer
            self._fail(batch, -1, error)
            self.missing[batch] = 0
            self.next_batch = batch + 1
        if self.missing[batch] == 0:
            self.changed.notify_all()
        return batch not in self.errors

    def done(self, batch: int, item: int, error: BaseException | None) -> None:
        with self.changed:
            if error is not None:
                self._fail(batch, item, error)
            self.missing[batch] -= 1
            if self.missing[batch] == 0:
                self.changed.notify_all()

    def _fail(self, batch: int, item: int, error: BaseException) -> None:
        if batch not in self.errors or item < self.errors[batch][0]:
            self.errors[batch] = (item, error)
        # the items of this batch are still filled, so that the first of several errors wins every time
        self.last = min(self.last, batch + 1)


def _work(state: _State[B], at_start: Callable[[], None], started: threading.Barrier) -> None:
    at_start()
    started.wait()
    while (taken := state.take()) is not None:
        opened, batch, item = taken
        error: BaseException | None = None
        try:
            state.fill(opened, item)
        except BaseException as raised:  # noqa: BLE001 belongs to the consumer
            error = raised
        state.done(batch, item, error)


def _stop(state: _State[B], threads: Sequence[threading.Thread]) -> None:
    with state.changed:
        state.stopped = True
        state.changed.notify_all()
    for thread in threads:
        thread.join()
