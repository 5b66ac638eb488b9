"""Progress of a long command: a bar on a terminal, otherwise a line every ten seconds and at the end.

Where torchrun started several processes, the first one speaks.

Library functions take a plain callback `progress(done, total)`; a `Progress` is one. Rate and remaining
time count what was done since the first call, so that a resumed job does not boast of earlier work.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TextIO

from cli.output import duration, say

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Progress:
    """Callback `(done, total)` that shows progress on stderr; use as a context manager.

    >>> print(describe(1024, 4096, 512, 2.0, "crops"))
    1,024 of 4,096 crops (25 %), 256 crops/s, 12 s left
    """

    def __init__(
        self,
        title: str,
        unit: str,
        *,
        stream: TextIO | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._every = every
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._latest = (0, 0)
        self._printed: tuple[int, int] | None = None
        self._printed_at = 0.0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._above: Progress | None = None

    def beside(self, title: str, unit: str) -> Progress:
        """A second count, shown below this one while it is not complete, again and again from its beginning."""
        other = Progress(title, unit, stream=self._stream, every=self._every, clock=self._clock)
        other._above = self
        return other

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._first is not None and self._printed != self._latest:
            self._print_line()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` units are finished."""
        if not is_first_rank():
            return
        now = self._clock()
        if self._first is None or done < self._latest[0]:
            self._first = (done, now)
            self._printed_at = now
            if self._bar is None and self._stream.isatty():
                # a terminal has one display at a time
                self._bar = (self._above and self._above._bar) or _bar(self._stream)
                self._task = self._bar.add_task(self._title, total=None, text="")
        self._latest = (done, total)
        if self._bar is not None and self._task is not None:
            shown = self._above is None or done < total
            self._bar.update(
                self._task, completed=done, total=total, text=self._describe(now), visible=shown
            )
        elif now - self._printed_at >= self._every:
            self._print_line()

    def _print_line(self) -> None:
        now = self._clock()
        self._printed, self._printed_at = self._latest, now
        print(f"{self._title}: {self._describe(now)}", file=self._stream, flush=True)

    def _describe(self, now: float) -> str:
        assert self._first is not None
        done, total = self._latest
        return describe(done, total, done - self._first[0], now - self._first[1], self._unit)


def progress_to_the_end(title: str, unit: str) -> Callable[[int, int], None]:
    """A `Progress` of work inside another command's: it ends by itself with the last item."""
    progress = Progress(title, unit)

    def report(done: int, total: int) -> None:
        progress(done, total)
        if done == total:
            progress.__exit__(None, None, None)

    return report


def is_first_rank() -> bool:
    """True for the one process that speaks where torchrun started several."""
    return os.environ.get("RANK", "0") in ("", "0")


def say_once(message: str) -> None:
    """A message for people, of the first rank only."""
    if is_first_rank():
        say(message)


def describe(done: int, total: int, recent: int, seconds: float, unit: str) -> str:
    """One line: done of total, and from `recent` units in `seconds` the rate and the remaining time."""
    share = f" ({100 * done // total} %)" if total else ""
    text = f"{done:,} of {total:,} {unit}{share}"
    if recent > 0 and seconds > 0:
        rate = recent / seconds
        text += f", {rate:,.0f} {unit}/s" if rate >= 10 else f", {rate:.2g} {unit}/s"
        if done < total:
            text += f", {duration((total - done) / rate)} left"
    return text


def _bar(stream: TextIO) -> RichProgress:
    # rich costs 0.1 s to import, and most calls run without a terminal
    from rich import progress as rich_progress
    from rich.console import Console

    # the description is given as text, so that a store's name is never read as markup
    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.TextColumn("{task.fields[text]}", markup=False),
    )
    bar = rich_progress.Progress(*columns, console=Console(file=stream))
    bar.start()
    return bar
