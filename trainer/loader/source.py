"""Where passes come from: lays out the labels of coming passes, ahead of time if asked, and maps them."""

from __future__ import annotations

import hashlib
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
from numpy.typing import NDArray

from labelstore.arrays.reading_threads import Stopped
from labelstore.calibration import too_many_left_out
from labelstore.cropping.crop_augmentation import PlannedAugmentation
from labelstore.errors import IncompleteError, LabelStoreError, RejectedInput, UsageError
from labelstore.scratch.folders import ScratchFolder
from labelstore.scratch.kept import KeptFolder
from labelstore.scratch.room import check_room
from trainer.config import Order
from trainer.loader.draws import KeptPlanes
from trainer.loader.pass_labels import PassLabels
from trainer.loader.planes import PlaneFolder
from trainer.loader.recorded_mixes import Partners
from trainer.loader.tails import TailFiles
from trainer.sampler import U64, PassSchedule

ATTACH_TIMEOUT_S = 3600.0
"""How long a process waits for another one to lay a pass out."""


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """The n images of a run that have crops to draw."""

    images: NDArray[np.int64]
    """(n,) image rows, ascending."""
    keys: Sequence[str]
    """n paths relative to the image folder."""
    streams: U64
    """(n,) `labelstore.cropping.crop_plan.image_streams` of the keys."""
    sizes: NDArray[np.int64]
    """(n, 2) height and width in pixels, below 1 where unknown."""
    ground_truth: NDArray[np.int64]
    """(n,) class ids, -1 where there is none."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class DrawCounts:
    """What a run draws from."""

    images: int
    """Images drawn in every pass."""
    left_out: int
    """Images without a usable crop: bad ones, and those that a mask discards altogether."""
    repeating: int
    """Images with fewer usable crops than one pass takes: they come twice within a pass."""


class PassSource(ABC):
    """Labels of every pass of a run.

    One process of a node writes; the others are given its `folders` as `attach` and only map what appears
    there. The folders are removed on `close` or at exit.
    """

    table: ImageTable
    counts: DrawCounts
    schedule: PassSchedule
    num_classes: int
    partners: Partners | None = None
    """What crops were mixed with before the teacher saw them."""
    augmentation: PlannedAugmentation | None = None
    """What the plan does to the pixels of its crops."""

    @property
    @abstractmethod
    def folders(self) -> tuple[Path, ...]:
        """Where labels are laid out: what other processes of the node attach to."""

    @abstractmethod
    def pass_labels(self, pass_index: int) -> PassLabels:
        """The labels of one pass, made now unless they are there already; any pass, in any order."""

    @abstractmethod
    def prepare_later(self, pass_index: int) -> None:
        """Begin to lay out a pass in the background; after the last pass, or when attached, do nothing.

        An error there is not raised; `pass_labels` meets it again.
        """

    @abstractmethod
    def drawn_from(self) -> dict[str, Any]:
        """Everything beside the settings that decides which crops and labels come, as plain values.

        A resumed run goes on only where it is what the run began with.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop preparing and remove the folders."""

    def of_pass(self, pass_index: int) -> PassSource:
        """Return the source whose crops a pass shows: `partners` and `augmentation` are that source's."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


EVERYTHING = (0.0, 1.0)
"""The probability range that leaves no crop out."""


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """Which stored crops are drawn, and in which order."""

    order: Order = "random"
    """Random, or a curriculum by how sure the teacher is, spread over all passes."""
    probability_range: tuple[float, float] = EVERYTHING
    """(low, high): leave out crops whose largest probability lies outside (FerKD Fig. 5)."""
    allow_empty_images: bool = False
    """Take labels that leave more than 1 % of the images without a usable crop."""
    allow_incomplete: bool = False
    """Draw from what is there of an unfinished label set or mask."""

    def __post_init__(self) -> None:
        """UsageError for an order or a range that is none."""
        if self.order not in get_args(Order):
            raise UsageError(f"order={self.order!r}: choose one of {', '.join(get_args(Order))}")
        low, high = self.probability_range
        if not 0 <= low <= high <= 1:
            raise UsageError(
                f"probability_range={low:g},{high:g}: give (low, high) with 0 <= low <= high <= 1"
            )
        object.__setattr__(self, "probability_range", (float(low), float(high)))

    @property
    def keeps_all(self) -> bool:
        """Whether every probability is within the range."""
        return self.probability_range == EVERYTHING


class PlaneSource(PassSource):
    """A source that lays its labels out as planes, one folder of them."""

    tails: TailFiles | None = None
    """How the tails of labels are spread that keep that once per image."""

    def _set_up(
        self,
        dtype: np.dtype[np.void],
        *,
        scratch: Path | None,
        attach: Path | None,
        draws: KeptFolder | None = None,
    ) -> None:
        """Last step of a subclass's `__init__`; `draws` is where planes stay for later runs."""
        self._scratch: ScratchFolder | KeptFolder | None = None
        if attach is None:
            self._scratch = ScratchFolder(scratch) if draws is None else draws
        folder = self._scratch.path if self._scratch is not None else Path(attach or "")
        self.planes = PlaneFolder(path=folder, num_images=len(self.table), dtype=dtype)
        self._kept_planes = KeptPlanes(self.planes) if KeptPlanes.are_in(folder) else None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ahead: list[threading.Thread] = []
        self._finalizer = weakref.finalize(self, _shut_down, self._stop, self._ahead, self._scratch)

    @property
    def folder(self) -> Path:
        """Where the planes are."""
        return self.planes.path

    @property
    def folders(self) -> tuple[Path, ...]:
        """The one folder of the planes."""
        return (self.folder,)

    def pass_labels(self, pass_index: int) -> PassLabels:
        """As said there."""
        positions = self.schedule.positions(pass_index)
        if self._scratch is None:
            self._wait_for(positions)
        else:
            self._ensure(positions)
        labels = PassLabels(
            images=self.table.images,
            num_classes=self.num_classes,
            planes=tuple(self.planes.plane(position) for position in positions),
            tails=self.tails,
        )
        # the pass before stays: another process may be about to map it
        keep = self.schedule.positions(max(pass_index - 1, 0)).start
        removes = self._scratch is not None and self._kept_planes is None
        self.planes.forget(keep, remove=removes)
        return labels

    def prepare_later(self, pass_index: int) -> None:
        """As said there."""
        self._ahead[:] = [thread for thread in self._ahead if thread.is_alive()]
        if self._scratch is None or self._ahead or pass_index >= self.schedule.num_passes:
            return
        positions = self.schedule.positions(pass_index)
        if all(self._has(position) for position in positions):
            return
        thread = threading.Thread(
            target=_prepare,
            args=(weakref.ref(self), positions),
            daemon=True,
            name="labelstore-next-pass",
        )
        self._ahead.append(thread)
        thread.start()

    def close(self) -> None:
        """Stop preparing and remove the folder."""
        self._finalizer()

    def drawn_from(self) -> dict[str, Any]:
        """Number and digest of the images and their classes."""
        digest = hashlib.sha256("\0".join(self.table.keys).encode())
        digest.update(self.table.ground_truth.astype("<i8").tobytes())
        return {"images": len(self.table), "images_sha256": digest.hexdigest()}

    @abstractmethod
    def _together(self, position: int) -> int:
        """Where the positions end that are read in one go with this one."""

    @abstractmethod
    def _write(self, positions: range) -> None:
        """Make the planes of these positions; raises `Stopped` once `self._stop` is set."""

    def _ensure(self, positions: range) -> None:
        with self._lock:
            for position in positions:
                if not self._has(position):
                    self._lay_out(range(position, self._together(position)))

    def _has(self, position: int) -> bool:
        planes = self.planes if self._kept_planes is None else self._kept_planes
        return planes.has(position)

    def _lay_out(self, positions: range) -> None:
        kept = self._kept_planes
        size = len(positions) * len(self.table) * self.planes.dtype.itemsize
        if kept is None:
            check_room(self.folder, size)
            self._write(positions)
            return
        with kept.alone():
            if not all(self._has(position) for position in positions):
                check_room(self.folder, size)
                self._write(positions)
                kept.seal(positions)

    def _wait_for(self, positions: range) -> None:
        deadline = time.monotonic() + ATTACH_TIMEOUT_S
        while not all(self._has(position) for position in positions):
            if not self.folder.is_dir():
                raise IncompleteError(
                    f"{self.folder} is gone: the process that lays out labels ended"
                )
            if time.monotonic() > deadline:
                raise IncompleteError(
                    f"no labels in {self.folder} after {ATTACH_TIMEOUT_S:.0f} s: "
                    "the process that lays them out is stuck"
                )
            time.sleep(0.05)


def _prepare(source: weakref.ref[PlaneSource], positions: range) -> None:
    alive = source()
    if alive is not None:
        # the next request for the pass does it again, and raises the error
        with suppress(Stopped, LabelStoreError, OSError):
            alive._ensure(positions)


def _shut_down(
    stop: threading.Event,
    threads: list[threading.Thread],
    scratch: ScratchFolder | KeptFolder | None,
) -> None:
    stop.set()
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()
    if scratch is not None:
        scratch.close()


def check_left_out(counts: DrawCounts, *, allow_empty_images: bool, why: str) -> None:
    """RejectedInput when more than 1 % of the images have no usable crop, or none has one.

    `why` says what decides that, for the message.
    """
    total = counts.images + counts.left_out
    if not counts.images:
        raise RejectedInput(f"none of {total} images has a usable crop: {why}; nothing to train on")
    if too_many_left_out(counts.left_out, total) and not allow_empty_images:
        raise RejectedInput(
            f"{counts.left_out} of {total} images have no usable crop, more than 1 %: {why}; "
            "accept it with `allow_empty_images`"
        )
