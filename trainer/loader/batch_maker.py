"""Makes the batches of any pass from its labels: in threads of this process, or of one that a loader started.

Nothing here belongs to one process: no handle of a store, no folder that has to be removed, no device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.loader.crop_pixels import CropPixels
from trainer.loader.image_files import named_errors
from trainer.loader.pass_labels import PassLabels
from trainer.loader.planes import Records
from trainer.loader.ring import BatchRing
from trainer.loader.source import ImageTable
from trainer.sampler import Deal, image_order

Augment = Callable[[Tensor, int, range], None]
"""Changes uint8 crops (m, 3, S, S) of one image in place, given the image's stream and the crops' positions."""


@dataclass(frozen=True, kw_only=True)
class OpenBatch:
    """One rank's images of a step, their records and crops; whole when every image was filled in."""

    indices: NDArray[np.intp]
    """(b,) into the source's image table."""
    records: Records
    """(b, m)."""
    pixels: Tensor
    """uint8 (b * m, 3, S, S), part of a buffer."""


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
    """What a step holds depends on the fields and the step only; can be pickled where `augment` and images can."""

    table: ImageTable
    deal: Deal
    rank: int
    seed: int
    pixels: tuple[CropPixels, ...]
    """Of every pass."""
    augment: Augment | None
    workers: int
    """Threads."""

    def images_of_steps(self, pass_index: int, start_step: int) -> list[slice]:
        """Where in the pass's order of images this rank's are, of every step from one on."""
        steps = range(start_step, self.deal.steps(pass_index))
        return [self.deal.share(pass_index, step, self.rank) for step in steps]

    def ring(
        self, pass_index: int, start_step: int, labels: PassLabels, buffers: Sequence[Tensor]
    ) -> BatchRing[OpenBatch]:
        """Threads that fill the buffers in turn with the batches of a pass, from a step on.

        Buffers are uint8 (at least b * m, 3, S, S), channels-last memory.
        """
        shares = self.images_of_steps(pass_index, start_step)
        order = image_order(self.seed, pass_index, self.table.streams)
        m = labels.crops_per_image

        def open_batch(batch: int) -> OpenBatch:
            indices = order[shares[batch]]
            pixels = buffers[batch % len(buffers)][: len(indices) * m]
            return OpenBatch(indices=indices, records=labels.take(indices), pixels=pixels)

        threads = torch.get_num_threads()
        ring = BatchRing(
            [share.stop - share.start for share in shares],
            open_batch,
            self._filler(pass_index),
            depth=len(buffers),
            workers=self.workers,
            at_start=_one_thread,
        )
        # the number is per thread once a thread has set it, and global for threads to come
        torch.set_num_threads(threads)
        return ring

    def _filler(self, pass_index: int) -> Callable[[OpenBatch, int], None]:
        """Return what a thread does for one image: write its m crops into the batch, augment them."""
        positions = self.deal.schedule.positions(pass_index)
        table, made, augment = self.table, self.pixels[pass_index], self.augment
        m = len(positions)

        def fill(batch: OpenBatch, nth: int) -> None:
            image = int(batch.indices[nth])
            crops = batch.pixels[nth * m : (nth + 1) * m]
            key = table.keys[image]
            made.write(key, table.sizes[image], batch.records[nth], crops)
            if augment is not None:
                with named_errors(key):
                    augment(crops, int(table.streams[image]), positions)

        return fill


def _one_thread() -> None:
    # an operator that starts threads of its own inside each of ours would have them fight for the cores.
    # A thread's first look at the number takes over the global one, so it has to come before
    torch.get_num_threads()
    torch.set_num_threads(1)
