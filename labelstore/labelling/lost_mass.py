"""How much of a teacher's probability a class map throws away: what it gives to outputs that are no classes.

The outputs that are kept share it, so that a label looks surer than the teacher was. It is measured on centre crops
before the first label is made, said, and recorded with the label set.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelstore.catalogue.records import TeacherRow
from labelstore.cropping.replay import centre_crops
from labelstore.errors import RejectedInput
from labelstore.images import ImageSource
from labelstore.teachers.labeller import Labeller

MAX_LOST = 0.25
"""Mean share of the probability that a class map may throw away before it has to be allowed."""
MOST_IMAGES = 512
"""Images that are looked at, spread evenly over the data set."""
BATCH = 50


@dataclass(frozen=True, kw_only=True)
class LostMass:
    """What the teacher gives to outputs that a class map leaves out, over centre crops."""

    images: int
    """Images looked at."""
    temperature: float
    """Temperature of the softmax."""
    mean: float
    """Share of the probability."""
    worst: float
    """Share of the image that loses most."""
    worst_image: str
    below_half: int
    """Images that keep less than half."""

    def to_record(self) -> dict[str, Any]:
        """Return what the facts of a label set keep."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"the class map leaves out outputs with {100 * self.mean:.1f} % of the teacher's probability on average "
            f"over {self.images:,} images, {100 * self.worst:.1f} % of {self.worst_image}; {self.below_half:,} "
            f"image{'' if self.below_half == 1 else 's'} keep{'s' if self.below_half == 1 else ''} less than half"
        )

    def judge(self, *, allowed: bool) -> None:
        """RejectedInput where more is lost on average than `MAX_LOST` and that is not allowed."""
        if self.mean > MAX_LOST and not allowed:
            raise RejectedInput(
                f"{self}: more than {MAX_LOST:.0%} on average makes labels much surer than the teacher; keep all its "
                "outputs with classes='teacher', or accept it with allow_lost_mass"
            )


def measured_lost_mass(
    labeller: Labeller,
    row: TeacherRow,
    kept: NDArray[np.int64],
    folder: ImageSource,
    *,
    skip_bad: bool,
    workers: int,
) -> LostMass:
    """Measure what is lost where only the outputs `kept` (classes,) of a labeller that gives all of them are.

    RejectedInput for an image that cannot be decoded, which `skip_bad` leaves out.
    """
    count = min(len(folder), MOST_IMAGES)
    keys = [folder.keys[i] for i in np.linspace(0, len(folder) - 1, count).astype(int).tolist()]
    outputs = torch.from_numpy(kept)
    shares: dict[str, float] = {}

    def look(some: list[str]) -> None:
        at = 0
        crops = centre_crops(
            [folder.file(key) for key in some],
            row.input_size,
            row.crop_pct,
            row.interpolation,
            batch_size=BATCH,
            workers=workers,
        )
        for pixels in crops:
            logits = labeller.logits(pixels).cpu().double()
            probs = torch.softmax(logits / labeller.temperature, dim=1)
            found = (1 - probs[:, outputs].sum(dim=1)).clamp(0, 1).tolist()
            shares.update(zip(some[at : at + len(found)], found, strict=True))
            at += len(found)

    try:
        look(keys)
    except RejectedInput:
        if not skip_bad:
            raise
        for key in keys:  # one by one, to find those that can be used
            if key not in shares:
                with suppress(RejectedInput):
                    look([key])
    if not shares:
        raise RejectedInput("no image could be decoded to measure what the class map leaves out")
    worst = max(shares, key=lambda key: shares[key])
    lost = np.array(list(shares.values()))
    return LostMass(
        images=len(lost),
        temperature=labeller.temperature,
        mean=float(lost.mean()),
        worst=shares[worst],
        worst_image=worst,
        below_half=int((lost > 0.5).sum()),
    )
