"""Crops that were mixed before their teacher saw them (`create --mix`, SRe2L, LPLD, ml-dr): the student is shown
the same mixtures.

Imported labels come with which image and box was mixed in, how much of it, and where (`MIX_FIELDS` of `store.layout`).
The partner's crop is cut out of its own image, one more decode per partner, and replaces the recorded box (CutMix)
or is blended with the recorded share (Mixup, rounded to the nearest of 256 values), or both, the box last. The box is
in pixels of the teacher's input: for a student of another input size it is scaled, edges rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from labelstore.cropping.crop_augmentation import (
    Operations,
    PlannedAugmentation,
    planned_augmentation,
)
from labelstore.cropping.crop_mixing import planned_mixing
from labelstore.cropping.crop_plan import is_blended
from labelstore.cropping.replay import mix_pixels, replay
from labelstore.errors import RejectedInput
from labelstore.images import ImageFile
from labelstore.store.layout import MIX_FIELDS
from trainer.loader.image_files import load_image, named_errors

if TYPE_CHECKING:
    from labelstore.calibration.ensembles import Ensemble

PathOf = Callable[[str], ImageFile]


@dataclass(frozen=True, kw_only=True)
class Partners:
    """The images that crops were mixed with: all of a store, by image row."""

    keys: NDArray[Any]
    """(rows,) keys."""
    sizes: NDArray[np.int64]
    """(rows, 2) height and width in pixels, below 1 where unknown."""
    side: int
    """Side of the teacher's input in pixels: what recorded boxes are measured in."""
    blended: bool = False
    """Whether shares hold outside of boxes too: a crop may be blended and then partly replaced (ml-dr)."""
    augmentation: PlannedAugmentation | None = None
    """What the plan does to the pixels of a partner's crop, too."""

    @classmethod
    def of(cls, labels: Ensemble) -> Partners | None:
        """Those of a label set's crops; None where these were not mixed."""
        if not labels.plan.parameters.get("mixed"):
            return None
        columns = labels.store.image_columns
        sides = [columns[name].astype(np.int64) for name in ("height", "width")]
        teacher = labels.store.teacher(labels.members[0].labels.row.teacher)
        planned = planned_mixing(labels.plan.parameters)
        return cls(
            keys=columns["key"],
            sizes=np.stack(sides, 1),
            side=teacher.input_size if planned is None else planned.settings.side,
            blended=is_blended(labels.plan.parameters),
            augmentation=planned_augmentation(labels.plan.parameters),
        )

    def mix_in(
        self, crops: Tensor, records: NDArray[np.void], path_of: PathOf, interpolation: str
    ) -> None:
        """Mix uint8 crops (m, 3, S, S) of one image in place, as their records (m,) say.

        RejectedInput for a record that cannot be: a partner or box that is not there, a share that is no fraction.
        """
        images: dict[int, Tensor] = {}
        for crop, record in zip(crops, records, strict=True):
            share, height = float(record["mix_share"]), int(record["mix_box"][2])
            if not 0 <= share <= 1:
                raise RejectedInput(
                    f"a crop was mixed with a share of {share:.4g}, not 0 to 1: import the labels again"
                )
            if height == 0 and share == 1:
                continue
            row = int(record["mix_image"])
            if row not in images:  # crops of one image often share their partner's
                images[row] = self._image(row, path_of)
            partner = self._crop(record, images[row], crop.shape[-1], interpolation)
            if self.blended and share < 1:
                mix_pixels(crop, partner, share, (0, 0, 0, 0), self.side)
            if height or not self.blended:
                mix_pixels(crop, partner, share, self._box(record), self.side)

    def _image(self, row: int, path_of: PathOf) -> Tensor:
        if row >= len(self.keys):
            raise RejectedInput(
                f"a crop was mixed with image {row} of {len(self.keys)}: import the labels again"
            )
        key = str(self.keys[row])
        with named_errors(key):
            return load_image(path_of(key), key, self.sizes[row])

    def _crop(self, record: np.void, image: Tensor, size: int, interpolation: str) -> Tensor:
        key = str(self.keys[int(record["mix_image"])])
        box, flip = record["mix_from"], bool(record["mix_flip"])
        todo: Operations = ()
        if self.augmentation is not None:
            # the partner is the other image's crop of the same number
            (todo,) = self.augmentation.operations(key, [int(record["crop"])])
        with named_errors(key):
            return replay(image, box, flip, size, interpolation, operations=todo)

    def _box(self, record: np.void) -> tuple[int, ...]:
        """Top, left, height, width of what was pasted."""
        top, left, height, width = (int(edge) for edge in record["mix_box"])
        edges = (top, left, top + height, left + width)
        if max(edges) > self.side:
            raise RejectedInput(
                f"a crop was mixed in rows {top}-{edges[2]} and columns {left}-{edges[3]} of {self.side} x "
                f"{self.side} pixels: import the labels with the teacher's `input_size`"
            )
        return top, left, height, width


def recorded_mixes(
    labels: Ensemble, block: int, columns: range | None
) -> Mapping[str, NDArray[Any]]:
    """The fields of `MIX_FIELDS` of one image block, (n, m, ...), as they are stored."""
    group = labels.store.group(f"crops/{labels.plan.name}")
    # the plan may have more crops than these
    columns = range(labels.layout.num_columns) if columns is None else columns
    return {field.name: group.read(block, columns, field.name) for field in MIX_FIELDS}
