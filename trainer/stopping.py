"""Ctrl-C and SIGTERM during a loop: noted, and acted on where the loop can stop cleanly."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `requested`; leaving delivers it to the old handler.

    Where there was none and the signal ends the process, leaving raises SystemExit (128 + its number), so that blocks
    further out clean up first. A signal that was ignored stays so. A second one is delivered at once. Threads other
    than the main one get no signals: there it does nothing.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in SIGNALS}
            # None is a handler that is not Python's, and could not be put back
            self._before = {
                number: handler
                for number, handler in before.items()
                if handler not in (None, signal.SIG_IGN)
            }
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # another rank may have got one that is not heard here
        ends_at_once = self._before.get(self.requested or 0, signal.SIG_DFL) is signal.SIG_DFL
        self._restore()
        if self.requested is None or kind is not None:
            return
        if ends_at_once:
            raise SystemExit(128 + self.requested)
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
