"""Results in the order of the items, with a bounded number of items under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")


def in_order(
    submit: Callable[[T], Any], result: Callable[[Any], Any], items: Iterable[T], window: int
) -> Iterator[Any]:
    """`result(submit(item))` for every item, `window` of them submitted ahead.

    When the iterator is dropped, the last futures stay: the caller cancels them.
    """
    waiting = iter(items)
    running = deque(submit(item) for item in islice(waiting, window))
    while running:
        found = result(running.popleft())
        running.extend(submit(item) for item in islice(waiting, 1))
        yield found
