"""Photographs in, batches of crops out: decode once, crop M times, batch across images, all in threads.

Crops of all images form one sequence (image by image, crop by crop); batch t is its t-th slice. Every
batch is filled in place in one of a few preallocated uint8 buffers, by threads: decoding and resizing
release the GIL. So a batch never waits for an image's last crop, memory does not grow with M, and the
forward pass of one batch overlaps with the pixels of the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from labelstore.cropping.crop_augmentation import PlannedAugmentation
from labelstore.cropping.device_decoding import crops_on_device
from labelstore.cropping.replay import decode, replay_many
from labelstore.errors import RejectedInput, StorageError
from labelstore.images import ImageFile, digest
from labelstore.labelling.mixed_crops import MixedCrops, Mixes

SPAN = 16
"""Crops that one task resizes: small enough to share an image of many crops between threads."""
BUFFERS = 4
"""Batches in flight: one whose labels are looked at, one in the forward pass, one full, one being filled."""
IMAGES_AHEAD = 4
"""Images per thread that are decoded before their first crop is needed."""


class CropsOfImage(Protocol):
    """What gives the boxes and flips of an image: a crop plan, or `whole_images.WholeImages`."""

    def crops(
        self, key: str, height: int, width: int, crops: NDArray[np.integer[Any]], /
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (m, 4) and flips (m,) of these crop numbers."""


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """One image to be cropped."""

    image: int
    key: str
    path: ImageFile
    first_crop: int = 0
    """Crops before it have labels already."""


@dataclass(kw_only=True)
class OpenedImage:
    """A decoded image with its crops, or the reason why it cannot be used."""

    job: ImageJob
    pixels: torch.Tensor | None
    height: int = 0
    width: int = 0
    digest: bytes = b""
    boxes: NDArray[np.uint16] | None = None
    flips: NDArray[np.bool_] | None = None
    bad: str | None = None
    mixes: Mixes | None = None
    """What its M crops are mixed with, where they are."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Crops [first, last) of one image, at [at, at + last - first) of a batch."""

    opened: Future[OpenedImage]
    first: int
    last: int
    at: int


@dataclass(frozen=True, kw_only=True)
class TeacherBatch:
    """uint8 crops (B, 3, S, S) and which images and crops they are. Valid until the next batch but one is asked for."""

    pixels: torch.Tensor
    segments: tuple[Segment, ...]
    size: int


@dataclass(frozen=True, kw_only=True)
class TeacherPixels:
    """How an encoded image becomes a teacher's crops."""

    input_size: int
    interpolation: str
    device: torch.device | None = None
    """Where crops are made; None for `replay` on the CPU, which `augmentation` and `mixed` need."""
    pin_memory: bool = False
    decode: Callable[[bytes, str], torch.Tensor] = decode
    """Pixels (3, H, W) of the bytes and the name of a file."""
    augmentation: PlannedAugmentation | None = None
    mixed: MixedCrops | None = None


class TeacherBatches:
    """Iterates batches of `batch_size` crops over jobs; the last batch may be smaller.

    Of every image the crops from its job's `first_crop` up to `num_crops`. `most_ahead` limits the images that are
    decoded before they are needed.
    """

    def __init__(
        self,
        jobs: Iterable[ImageJob],
        plan: CropsOfImage,
        pixels: TeacherPixels,
        *,
        num_crops: int,
        batch_size: int,
        workers: int,
        check: Callable[[OpenedImage], None] | None = None,
        most_ahead: int | None = None,
    ) -> None:
        self._jobs = iter(jobs)
        self._plan, self._pixels = plan, pixels
        self._num_crops = num_crops
        self._batch_size = batch_size
        self._check = check
        shape = (batch_size, 3, pixels.input_size, pixels.input_size)
        self._free = deque(
            torch.empty(
                shape,
                dtype=torch.uint8,
                device=pixels.device,
                pin_memory=pixels.pin_memory and pixels.device is None,
            )
            for _ in range(BUFFERS)
        )
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="crops")
        self._ahead: deque[tuple[ImageJob, Future[OpenedImage]]] = deque()
        self._most_ahead = min(IMAGES_AHEAD * workers, most_ahead or IMAGES_AHEAD * workers)

    def __iter__(self) -> Generator[TeacherBatch, None, None]:
        waiting: deque[tuple[TeacherBatch, list[Future[None]]]] = deque()
        plans = self._plan_batches()
        planned = True
        given: torch.Tensor | None = None
        try:
            while True:
                while planned and self._free:
                    segments = next(plans, None)
                    if segments is None:
                        planned = False
                        break
                    waiting.append(self._start(segments))
                if not waiting:
                    return
                batch, tasks = waiting.popleft()
                for task in tasks:
                    task.result()
                if given is not None:
                    self._free.append(given)
                given = batch.pixels
                yield batch
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _plan_batches(self) -> Iterator[tuple[Segment, ...]]:
        segments: list[Segment] = []
        filled = 0
        while (following := self._next_image()) is not None:
            job, opened = following
            first = job.first_crop
            while first < self._num_crops:
                last = min(self._num_crops, first + self._batch_size - filled)
                segments.append(Segment(opened=opened, first=first, last=last, at=filled))
                filled += last - first
                first = last
                if filled == self._batch_size:
                    yield tuple(segments)
                    segments, filled = [], 0
        if segments:
            yield tuple(segments)

    def _next_image(self) -> tuple[ImageJob, Future[OpenedImage]] | None:
        while len(self._ahead) < self._most_ahead:
            job = next(self._jobs, None)
            if job is None:
                break
            self._ahead.append((job, self._pool.submit(self._open, job)))
        return self._ahead.popleft() if self._ahead else None

    def _open(self, job: ImageJob) -> OpenedImage:
        try:
            data = job.path.read_bytes()
        except FileNotFoundError as error:
            # never a reason to leave images out for good: a disk may have been unmounted
            raise StorageError(
                f"{job.path} is missing, and was there when this command began: bring it back and run the command again"
            ) from error
        except OSError as error:
            raise StorageError(f"cannot read {job.path}: {error.strerror}") from error
        try:
            pixels = self._pixels.decode(data, str(job.path))
            height, width = pixels.shape[-2:]
            boxes, flips = self._plan.crops(job.key, height, width, np.arange(self._num_crops))
        except RejectedInput as error:
            return OpenedImage(job=job, pixels=None, bad=str(error))
        opened = OpenedImage(
            job=job,
            pixels=pixels,
            height=height,
            width=width,
            digest=digest(data),
            boxes=boxes,
            flips=flips,
        )
        if self._check is not None:
            self._check(opened)
        if self._pixels.mixed is not None:
            opened.mixes = self._pixels.mixed.of(job.image, job.first_crop, boxes, flips)
        if self._pixels.device is not None:
            opened.pixels = pixels.to(self._pixels.device)
        return opened

    def _start(self, segments: tuple[Segment, ...]) -> tuple[TeacherBatch, list[Future[None]]]:
        pixels = self._free.popleft()
        tasks = [
            self._pool.submit(self._fill, segment, first, pixels)
            for segment in segments
            for first in range(segment.first, segment.last, SPAN)
        ]
        size = segments[-1].at + segments[-1].last - segments[-1].first
        return TeacherBatch(pixels=pixels, segments=segments, size=size), tasks

    def _fill(self, segment: Segment, first: int, pixels: torch.Tensor) -> None:
        # the image was submitted before this task, so waiting for it cannot deadlock the pool
        opened = segment.opened.result()
        settings = self._pixels
        last = min(first + SPAN, segment.last)
        start = segment.at + first - segment.first
        out = pixels[start : start + last - first]
        if opened.pixels is None:
            out.zero_()
            return
        assert opened.boxes is not None
        assert opened.flips is not None
        if settings.device is not None:
            crops_on_device(
                opened.pixels,
                opened.boxes[first:last],
                opened.flips[first:last],
                settings.interpolation,
                out,
            )
            return
        replay_many(
            opened.pixels,
            opened.boxes[first:last],
            opened.flips[first:last],
            size=pixels.shape[-1],
            interpolation=settings.interpolation,
            out=out,
            operations=None
            if settings.augmentation is None
            else settings.augmentation.operations(opened.job.key, range(first, last)),
        )
        if settings.mixed is not None:
            assert opened.mixes is not None
            mixes = {name: values[first:last] for name, values in opened.mixes.items()}
            settings.mixed.mix_in(out, np.arange(first, last), mixes, settings.interpolation)


MAX_SIDE = 65_534
"""Longest side of an image in pixels: boxes have 16 bits and 65,535 is their sentinel."""


@dataclass(frozen=True)
class WholeImages:
    """The plan of one crop per image: all of it, squashed to a square as ReLabel's teacher saw it."""

    def crops(
        self, key: str, height: int, width: int, crops: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Boxes (m, 4) uint16 and flips (m,); RejectedInput for an image that a box cannot describe."""
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            raise RejectedInput(f"{key}: {height} x {width} pixels, a side is 1 to {MAX_SIDE}")
        boxes = np.array([[0, 0, height, width]], np.uint16)
        return np.repeat(boxes, len(crops), 0), np.zeros(len(crops), bool)
