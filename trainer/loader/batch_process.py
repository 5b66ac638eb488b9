"""A process of its own that makes batches, so that its threads and the training loop do not share one interpreter.

It runs the same `BatchMaker`, whose buffers are slots of a file in a scratch folder that both processes map. Records
come through a pipe: 40 bytes per crop of sparse labels. The process ends with its parent, however that ends, and
leaves signals that ask to stop to it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from contextlib import suppress
from dataclasses import replace
from math import prod
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelstore.blocks.process_pool import follow_parent
from labelstore.errors import IncompleteError, LabelStoreError, UsageError
from labelstore.scratch.folders import ScratchFolder, storage_errors
from labelstore.scratch.room import check_room
from trainer.loader.batch_maker import BatchMaker, OpenBatch
from trainer.loader.pass_labels import PassLabels
from trainer.loader.ring import BatchRing
from trainer.stopping import SIGNALS

SLOTS_FILE = "batches.u8"
NO_PASS = 0
"""The number of none; passes that are begun count from 1."""
Slots = tuple[int, int, int]
"""How many there are, the crops of each, and their side S in pixels."""


class BatchProcess:
    """The process of one loader, for all passes in turn: one is open at a time."""

    def __init__(
        self, maker: BatchMaker, slots: Slots, *, scratch: Path | None, pin_memory: bool
    ) -> None:
        """UsageError where the maker cannot be sent to a process, StorageError where the slots do not fit into the
        scratch folder. With `pin_memory` batches are copied out of their slots into pinned memory."""
        self._parcel: bytes | None = _packed(maker)
        folder = ScratchFolder(scratch)
        file = folder.path / SLOTS_FILE
        try:
            _allocate(file, slots)
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(
                target=_make_batches, args=(theirs, file, slots), name="labelstore-batches"
            )
            # it leaves them to this process from its first moment on, as masks are inherited. Starting the tracker,
            # which `start` does otherwise, would clear the mask
            resource_tracker.ensure_running()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                self._process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except BaseException:
            folder.close()
            raise
        # the process's end of the pipe is its own: it closes when that ends
        theirs.close()
        # not weakref's: at exit, multiprocessing calls its own before it waits for processes
        self._finalizer = Finalize(self, _end, (self._pipe, self._process, folder), exitpriority=10)
        self._slots = _mapped(file, slots)
        self._pinned = torch.empty_like(self._slots[0], pin_memory=True) if pin_memory else None
        self._how = "was closed"
        self._passes, self._open, self._owner = NO_PASS, NO_PASS, os.getpid()

    def begin(self, pass_index: int, start_step: int, labels: PassLabels) -> PassInProcess:
        """Batches of a pass from a step on; a pass that is open ends."""
        self.end(self._open)
        if self._parcel is not None:
            self._send(self._parcel)
            self._parcel = None
        self._passes += 1
        self._open = self._passes
        # what spreads tails stays here, where batches get their labels
        wanted = pickle.dumps((pass_index, start_step, replace(labels, tails=None)))
        self._send(pickle.dumps((self._open, wanted)))
        return PassInProcess(self, self._open)

    def get(self, number: int, batch: int) -> OpenBatch:
        """The next batch of the open pass. Raises what making it raised, IncompleteError if the process has ended."""
        if number != self._open:
            raise RuntimeError("this loader is closed")
        reply = self._receive()
        if isinstance(reply, BaseException):
            raise reply
        indices, records = reply
        pixels = self._slots[batch % len(self._slots)][: records.size]
        if self._pinned is not None:
            # a mapped file cannot be pinned everywhere; `CropBatches` waits for the copies from this one
            pixels = self._pinned[: records.size].copy_(pixels)
        return OpenBatch(indices=indices, records=records, pixels=pixels)

    def release(self, number: int, batch: int) -> None:
        """This batch's slot may be filled again."""
        if number == self._open:
            self._send(pickle.dumps((number, batch)))

    def end(self, number: int) -> None:
        """End a pass if it is open: afterwards no slot is written to."""
        # a forked child of this process inherits the pipe, which is not its own
        if number != self._open or number == NO_PASS or os.getpid() != self._owner:
            return
        with suppress(LabelStoreError):
            self._send(pickle.dumps((number, None)))
            while self._receive() is not None:
                pass
        self._open = NO_PASS

    def close(self) -> None:
        """End the process and remove its file. The batch that was given out last stays readable."""
        self._open = NO_PASS
        self._finalizer()

    def _send(self, message: bytes) -> None:
        # that the process has ended is said where a batch is asked for, which is where a run with several ranks can
        # agree to end
        with suppress(OSError):
            self._pipe.send_bytes(message)

    def _receive(self) -> Any:  # noqa: ANN401 - a batch, an error, or None for the end of the pass
        try:
            while True:
                number, reply = self._pipe.recv()
                if number == self._open:
                    return reply
        except (EOFError, OSError):
            raise self._ended() from None
        except BaseException:
            # a message that was read in half: what follows would make no sense
            self.close()
            raise

    def _ended(self) -> IncompleteError:
        if self._finalizer.still_active():
            self._process.join(1)
            code = self._process.exitcode
            self._how = f"ended with exit code {code}, its output says why"
            if code is not None and code < 0:
                self._how = f"was killed ({signal.Signals(-code).name}), perhaps for want of memory"
            self.close()
        return IncompleteError(
            f"the process that makes batches {self._how}: give fewer `workers`, or `loader=threads`"
        )


class PassInProcess:
    """One pass of a `BatchProcess`, used as a `BatchRing` is; dropping it ends the pass."""

    def __init__(self, process: BatchProcess, number: int) -> None:
        self._process, self._number = process, number
        self._finalizer = weakref.finalize(self, process.end, number)

    def get(self, batch: int) -> OpenBatch:
        """As said there; batches are asked for in order."""
        return self._process.get(self._number, batch)

    def release(self, batch: int) -> None:
        """As said there."""
        self._process.release(self._number, batch)

    def close(self) -> None:
        """End the pass; the process finishes the images that it is at."""
        self._finalizer()


def _packed(maker: BatchMaker) -> bytes:
    try:
        return pickle.dumps(maker)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"`loader=process` sends what makes crops to another process, and this cannot be pickled ({error}): "
            "define it in a module, or use `loader=threads`"
        ) from None


def _allocate(file: Path, slots: Slots) -> None:
    """Make the file, with room for all of it: a write to mapped memory could not say that a disk is full."""
    count, crops, side = slots
    size = prod((count, crops, 3, side, side))
    check_room(file.parent, size, what="batches")
    with storage_errors(file), file.open("xb") as opened:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, size)
        else:
            opened.truncate(size)


def _mapped(file: Path, slots: Slots) -> list[Tensor]:
    """The slots as buffers: uint8 (crops, 3, S, S), channels-last memory."""
    count, crops, side = slots
    pixels = np.memmap(file, np.uint8, "r+", shape=(count, crops, side, side, 3))
    return [torch.from_numpy(np.asarray(slot)).permute(0, 3, 1, 2) for slot in pixels]


def _end(pipe: Connection[Any, Any], process: SpawnProcess, folder: ScratchFolder) -> None:
    # it has nothing to finish, and nothing of its own to clean up
    process.kill()
    process.join()
    pipe.close()
    folder.close()


def _make_batches(pipe: Connection[Any, Any], file: Path, slots: Slots) -> None:
    """The process: passes as they are asked for, until it is killed or its parent ends."""
    follow_parent()
    buffers = _mapped(file, slots)
    making: _Making | None = None
    with suppress(EOFError):
        maker = _unpacked(pipe.recv_bytes())
        while True:
            number, wanted = pickle.loads(pipe.recv_bytes())
            if isinstance(wanted, bytes):
                making = _Making(pipe, number, maker, wanted, buffers)
            elif making is not None and wanted is not None:
                making.release(wanted)
            elif making is not None:
                making.end()


def _unpacked(parcel: bytes) -> BatchMaker | Exception:
    try:
        maker: BatchMaker = pickle.loads(parcel)
    except Exception as error:  # noqa: BLE001 - raised where the parent asks for a pass
        return error
    return maker


class _Making:
    """One pass in the process: a thread sends its batches as they are filled."""

    def __init__(
        self,
        pipe: Connection[Any, Any],
        number: int,
        maker: BatchMaker | Exception,
        wanted: bytes,
        buffers: list[Tensor],
    ) -> None:
        self._pipe, self._number, self._ended = pipe, number, False
        self._ring: BatchRing[OpenBatch] | None = None
        try:
            if isinstance(maker, Exception):
                raise maker
            pass_index, start_step, labels = pickle.loads(wanted)
            self._ring = maker.ring(pass_index, start_step, labels, buffers)
        except Exception as error:  # noqa: BLE001 - belongs to the parent
            pipe.send((number, _shipped(error)))
            return
        count = len(maker.images_of_steps(pass_index, start_step))
        self._sender = threading.Thread(
            target=self._send_all, args=(self._ring, count), daemon=True
        )
        self._sender.start()

    def release(self, batch: int) -> None:
        if self._ring is not None:
            self._ring.release(batch)

    def end(self) -> None:
        """End the threads, and say so."""
        self._ended = True
        if self._ring is not None:
            self._ring.close()
            self._sender.join()
        self._pipe.send((self._number, None))

    def _send_all(self, ring: BatchRing[OpenBatch], count: int) -> None:
        try:
            for batch in range(count):
                opened = ring.get(batch)
                self._pipe.send((self._number, (opened.indices, opened.records)))
        except BaseException as error:  # noqa: BLE001 - belongs to the parent
            if not self._ended:
                self._pipe.send((self._number, _shipped(error)))


def _shipped(error: BaseException) -> BaseException:
    """The error as it can be sent: of one that cannot, its line."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its class does
        return LabelStoreError(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return error
