"""A loop over independent items on a few threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

REMOTE_THREADS = 32
"""Reads from object storage that are under way at a time: each waits for its requests, not for a core."""


class Stopped(Exception):
    """The work was called off before it was done."""


def for_each(
    work: Callable[[T], None],
    items: Iterable[T],
    *,
    threads: int,
    stop: threading.Event | None = None,
) -> None:
    """`work` on every item, on `threads` threads including this one; the first error is raised here.

    After an error, or when `stop` is set (`Stopped`), no further item is begun.
    """
    # not an executor: at exit of the interpreter, executors first work through all that was submitted
    waiting = iter(list(items))
    lock = threading.Lock()
    errors: list[BaseException] = []

    def run() -> None:
        while not errors:
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            try:
                if stop is not None and stop.is_set():
                    raise Stopped
                work(item)
            except BaseException as error:  # noqa: BLE001 raised again in the caller's thread
                errors.append(error)

    helpers = [threading.Thread(target=run, daemon=True) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    run()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
