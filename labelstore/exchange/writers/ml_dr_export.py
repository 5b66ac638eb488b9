"""ml-dr's reinforced data out: `INDEX.pth.tar` per image and `config.pth.tar`, as `exchange.ml_dr` and ml-dr read them.

INDEX is the image's place in its folder, also where only some images go out. Boxes are whole pixels, probabilities
Python floats, which hold every float32; pickles are of protocol 2 (ml-dr's own are of 4), which today's
`torch.load` reads without trusting them and without a warning. Mixing goes out as it came in. Lost: the tail
(ml-dr spreads one minus the sum, or takes a softmax of what is kept), keys, digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import TopK
from labelstore.cropping.crop_plan import is_blended
from labelstore.errors import UsageError
from labelstore.exchange.exported import Export, ExportedBlock, Writer
from labelstore.exchange.readers.image_orders import folder_order_of
from labelstore.exchange.readers.ml_dr import CONFIG, ENDING
from labelstore.exchange.writers.torch_files import save_torch
from labelstore.store import Store

_PILLOW = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


class MlDrWriter(Writer):
    """Writes one file per image and the configuration."""

    made_at: ClassVar[float | None] = 1.0
    keeps_mixing: ClassVar[bool] = True

    def __init__(self, place: Path, export: Export) -> None:
        """UsageError for labels of all classes, of which ml-dr has no form."""
        labels = export.labels
        if export.kept is None:
            raise UsageError(
                f"label set {labels.name} is {labels.codec.name}: ml-dr's files hold the K largest probabilities; "
                f"derive them with `labelstore.derive(store, compression='ms', k={min(10, labels.num_classes - 1)})`"
            )
        self.folder, self.export = place, export
        self._place = _positions(labels.store)
        self._side = labels.store.teacher(labels.row.teacher).input_size

    def write(self, block: ExportedBlock) -> int:
        """One file per image."""
        labels = block.labels
        assert isinstance(labels, TopK)
        for at, row in enumerate(block.rows):
            mixed = None
            if block.mixed is not None:
                mixed = {name: values[at] for name, values in block.mixed.items()}
            samples = [
                {
                    "params": self._params(block.boxes[at], block.flips[at], mixed, crop, int(row)),
                    "prob": (
                        labels.probs[at, crop].tolist(),
                        labels.class_ids[at, crop].tolist(),
                    ),
                }
                for crop in range(len(self.export.crops))
            ]
            index = int(self._place[row])
            save_torch((index, samples), self.folder / f"{index}{ENDING}")
        return len(block.keys)

    def finish(self) -> int:
        """The configuration, without which no sample can be read."""
        save_torch(self._configuration(), self.folder / CONFIG)
        return 1

    def _params(
        self,
        boxes: NDArray[np.uint16],
        flips: NDArray[np.bool_],
        mixed: Mapping[str, NDArray[Any]] | None,
        crop: int,
        row: int,
    ) -> list[Any]:
        box, flip = tuple(boxes[crop].tolist()), bool(flips[crop])
        if mixed is None:
            return [box, flip]
        partner, share = int(mixed["mix_image"][crop]), float(mixed["mix_share"][crop])
        theirs, their_flip = tuple(mixed["mix_from"][crop].tolist()), bool(mixed["mix_flip"][crop])
        top, left, height, width = mixed["mix_box"][crop].tolist()
        if share == 1 and not height and (partner, theirs, their_flip) == (row, box, flip):
            return [None, box, flip, None, None]
        blended = is_blended(self.export.labels.plan.parameters)
        # where shares are mixup's, cutmix's follows from the box
        area = 1 - height * width / self._side**2 if blended else share
        pasted = [area, top, left, top + height, left + width] if height else None
        return [
            int(self._place[partner]),
            [box, theirs],
            [flip, their_flip],
            share if (share < 1 if blended else not pasted) else None,
            pasted,
        ]

    def _configuration(self) -> dict[str, Any]:
        labels = self.export.labels
        teacher = labels.store.teacher(labels.row.teacher)
        crop: dict[str, Any] = {"enable": True, "size": teacher.input_size}
        if teacher.interpolation != "bilinear":
            crop["interpolation"] = _PILLOW.get(teacher.interpolation, _PILLOW["bilinear"])
        augmentation: dict[str, Any] = {
            "uint8": {"enable": True},
            "random_resized_crop": crop,
            "random_horizontal_flip": {"enable": True, "p": 0.5},
            "to_tensor": {"enable": True},
            "normalize": {"mean": list(teacher.mean), "std": list(teacher.std)},
        }
        if self.export.is_mixed:
            augmentation["mixup"] = {"enable": True, "alpha": 1.0, "p": 0.5}
            augmentation["cutmix"] = {"enable": True, "alpha": 1.0, "p": 0.5}
        return {
            "dataset": "imagenet",  # any ImageFolder, whose order the indices are in
            "num_classes": labels.num_classes,
            "teacher": {"name": teacher.architecture},
            "reinforce": {
                "num_samples": len(self.export.crops),
                "topk": self.export.kept,
                "compress": True,
                "joblib": False,
                "image_augmentation": augmentation,
            },
        }


def _positions(store: Store) -> NDArray[np.int64]:
    """Per row the position of its image in torchvision's order; -1 for a row without an image."""
    rows = np.flatnonzero(~store.free)
    columns, names = store.image_columns, store.class_names
    keys = [str(key) for key in columns["key"][rows]]
    order = folder_order_of(keys, [names[number] for number in columns["class_id"][rows]])
    positions = np.full(store.num_rows, -1, np.int64)
    positions[rows[order]] = np.arange(len(rows))
    return positions
