"""What travels to a worker: the function once as bytes, and items by number; each worker opens its own handles.

A function holds label sets, and a label set that arrives in another process opens its store there. That takes
as long as reading the images table, so a worker keeps the functions that it met last.
"""

from __future__ import annotations

import pickle
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar, cast

from labelstore.errors import LabelStoreError

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
