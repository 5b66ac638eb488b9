"""One leased image block on its way from batches of crops to a commit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.commit.labelled_block import LabelledBlock
from labelstore.commit.spool import LabelledImage, Spool
from labelstore.labelling.crop_batches import OpenedImage


@dataclass(kw_only=True)
class ImageBlock(LabelledBlock):
    """Labels of a block's images as they come in, batch by batch."""

    pending: set[int]
    """Image rows that still wait for labels."""
    spool: Spool | None = None
    """Where finished images are kept until the block is committed."""
    bad: dict[int, str] = field(default_factory=dict)
    """Left out, now or in an earlier session: image row -> reason."""
    _partial: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)
    _seconds: dict[int, float] = field(default_factory=dict)

    def take(self, found: Mapping[int, LabelledImage]) -> None:
        """Take images that an earlier lease finished.

        What was labelled for another range of crops, before the plan grew, is of no use.
        """
        usable = {
            image: labelled
            for image, labelled in found.items()
            if image in self.pending
            and (labelled.first_crop, len(labelled.arrays["box"]))
            == (self.first_crop, self.num_new)
        }
        self.done |= usable
        self.pending -= usable.keys()

    @property
    def seconds(self) -> float:
        """Seconds spent on the images that have labels, summed over workers."""
        return sum(labelled.seconds for labelled in self.done.values())

    def add(
        self,
        opened: OpenedImage,
        first: int,
        last: int,
        labels: Mapping[str, NDArray[Any]],
        seconds: float = 0.0,
    ) -> None:
        """Take the labels of crops [first, last) of one image; its last crop finishes it."""
        image = opened.job.image
        self._seconds[image] = self._seconds.get(image, 0.0) + seconds
        arrays = self._partial.setdefault(image, {})
        for name, values in labels.items():
            if name not in arrays:
                arrays[name] = np.empty((self.num_new, *values.shape[1:]), values.dtype)
            arrays[name][first - self.first_crop : last - self.first_crop] = values
        if last < self.num_crops:
            return
        assert opened.boxes is not None
        assert opened.flips is not None
        del self._partial[image]
        finished = LabelledImage(
            image=image,
            height=opened.height,
            width=opened.width,
            digest=opened.digest,
            arrays={
                "box": opened.boxes[self.first_crop :],
                "flip": opened.flips[self.first_crop :],
                **{n: values[self.first_crop :] for n, values in (opened.mixes or {}).items()},
                **arrays,
            },
            first_crop=self.first_crop,
            seconds=self._seconds.pop(image),
        )
        if self.spool is not None:
            self.spool.append(finished)
        self.done[image] = finished
        self.pending.discard(image)

    def leave_out(self, image: int, reason: str) -> None:
        """Record an image that cannot be used."""
        self.bad[image] = reason
        self.pending.discard(image)
        self._partial.pop(image, None)

    def close(self) -> None:
        """Sync and close the spool."""
        if self.spool is not None:
            self.spool.close()


class Stopwatch:
    """Seconds since it was last read."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
