"""Between two steps all ranks agree: go on, save first, stop for a signal, or end for an error of one of them.

Signals, clocks and disks differ from rank to rank, and a rank that leaves alone lets the others wait for ever. So
before every step each rank says one number, and the largest one counts for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from labelstore.errors import LabelStoreError, StorageError
from trainer.loader import CropBatch, CropBatches
from trainer.ranks import Ranks
from trainer.stopping import StopRequest

SAVE = 1
"""No signal has this number that asks to stop."""
FAILED = 256
"""Added to the exit code of an error; above the number of any signal."""
SAVING_TAKES = 1 / 50
"""Largest share of the time that checkpoints inside a pass take."""


class BetweenSteps:
    """Hands out batches as long as all ranks go on; `save` writes the state after the last whole step.

    `save` is called by all ranks at once. `minutes` go by on rank 0 from one checkpoint to the next; 0 is never.
    """

    def __init__(
        self,
        ranks: Ranks,
        stop: StopRequest,
        *,
        step: Callable[[], int],
        save: Callable[[], None] | None,
        minutes: float,
        note: Callable[[str], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`step` says how many steps were taken; without `save` nothing is kept."""
        self._ranks, self._stop, self._step, self._save = ranks, stop, step, save
        self._seconds, self._note, self._clock = 60 * minutes, note, clock or time.monotonic
        self._saved_step, self._saved_at, self._took = -1, 0.0, 0.0
        self.stopped = 0
        """The signal that all ranks stop for; 0 while they go on."""

    def batches(self, loaded: CropBatches) -> Iterator[CropBatch]:
        """Batches of the pass until all ranks stop, the state then saved.

        Where a rank cannot read its next batch the state is saved too, and the error raised; the other ranks end
        silently with its exit code (SystemExit).
        """
        # what a pass begins with is on disk already
        self._saved_step, self._saved_at = self._step(), self._clock()
        while len(loaded):
            batch, error = self._next(loaded)
            match self._ranks.largest(self._wanted(error)):
                case agreed if agreed >= FAILED:
                    self._save_before_the_end()
                    raise error or SystemExit(agreed - FAILED)
                case agreed if agreed > SAVE:
                    self.stopped = agreed
                    self._save_now()
                    return
                case agreed if agreed == SAVE:
                    self._save_if_possible()
            assert batch is not None
            yield batch
        # the end of the iterator gives the last buffer back
        next(loaded, None)

    def _next(self, loaded: CropBatches) -> tuple[CropBatch | None, Exception | None]:
        if self._stop.requested is not None:
            return None, None
        try:
            return next(loaded), None
        except (LabelStoreError, OSError) as error:
            return None, error

    def _wanted(self, error: Exception | None) -> int:
        if error is not None:
            code = error.exit_code if isinstance(error, LabelStoreError) else StorageError.exit_code
            return FAILED + code
        if self._stop.requested is not None:
            return self._stop.requested
        return SAVE if self._is_due() else 0

    def _is_due(self) -> bool:
        if not (self._ranks.is_first and self._save and self._seconds):
            return False
        wait = max(self._seconds, self._took / SAVING_TAKES)
        return self._step() > self._saved_step and self._clock() - self._saved_at >= wait

    def _save_now(self) -> bool:
        """Whether there was anything to save."""
        if self._save is None or self._step() == self._saved_step:
            return False
        started = self._clock()
        try:
            self._save()
        finally:
            self._saved_at = self._clock()
            self._took = self._saved_at - started
        self._saved_step = self._step()
        return True

    def _save_if_possible(self) -> None:
        """A disk that is full for a moment costs a checkpoint and not the run."""
        try:
            self._save_now()
        except OSError as error:
            self._note(f"step {self._step()} is not saved ({error}): going on, and trying again")

    def _save_before_the_end(self) -> None:
        try:
            if self._save_now():
                self._note(f"step {self._step()} is saved: `resume` goes on from there")
        except (LabelStoreError, OSError) as error:
            # what ended the run is what has to be said
            self._note(f"step {self._step()} is not saved: {error}")
