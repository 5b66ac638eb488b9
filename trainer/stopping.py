"""Ctrl-C and SIGTERM during a loop: noted, and acted on where the loop can stop cleanly."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `requested`; leaving delivers it to the old handler.

    A second one is delivered at once. Threads other than the main one get no signals: there it does nothing.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
        if self.requested is not None and kind is None:
            signal.raise_signal(self.requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            self._restore()
            signal.raise_signal(number)
        self.requested = number

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
