"""An image's m crops as pixels: read, decode, check, replay with the plan's augmentation, and mix as it was
recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from labelstore.cropping.crop_augmentation import PlannedAugmentation
from labelstore.cropping.device_decoding import DeviceDecoding, crops_on_device
from labelstore.cropping.replay import decode, replay_many
from labelstore.images import ImageFile
from trainer.loader.image_files import load_image, named_errors
from trainer.loader.planes import Records
from trainer.loader.recorded_mixes import Partners


@dataclass(frozen=True, kw_only=True)
class CropPixels:
    """Makes crops of any image; can be pickled where `path_of` can, and called by many threads."""

    path_of: Callable[[str], ImageFile]
    input_size: int
    """S."""
    interpolation: str
    partners: Partners | None = None
    """What crops were mixed with; None where they were not."""
    augmentation: PlannedAugmentation | None = None
    """What the plan does to the pixels of its crops; None for nothing."""
    decoding: DeviceDecoding | None = None
    """Decodes on the device, where crops are made too; None for the CPU, which the two above need."""

    def write(self, key: str, size: NDArray[np.int64], records: Records, out: Tensor) -> None:
        """Crops of the image `key` of `size` (height, width) by their records (m,) into `out`, uint8 (m, 3, S, S).

        Errors name the image.
        """
        with named_errors(key):
            image = load_image(self.path_of(key), key, size, self.decoding or decode)
            boxes, flips = records["box"], records["flip"]
            if self.decoding is not None:
                crops_on_device(image, boxes, flips, self.interpolation, out)
                return
            operations = None
            if self.augmentation is not None:
                operations = self.augmentation.operations(key, records["crop"])
            replay_many(image, boxes, flips, self.input_size, self.interpolation, out, operations)
            if self.partners is not None:
                self.partners.mix_in(out, records, self.path_of, self.interpolation)
