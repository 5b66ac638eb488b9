"""Files of `torch.save` out, for FKD, ReLabel, TokenLabeling and ml-dr: plain tensors and values.

`torch.load` takes them without trusting them. Boxes of FKD's files are shares of the image's sides in float32, which
`replay` and the importer turn back into the same pixels; lost are the tail of `ms` (FKD spreads one minus the sum),
class table, digests, the teacher. Label maps are written rows first, or turned for a reader that expects ReLabel's maps
so; lost are the crop plan (a map serves any crop), the size that the teacher saw, digests, the teacher.

ml-dr's INDEX is the image's place in its folder, also where only some images go out. Boxes are whole pixels,
probabilities Python floats, which hold every float32; pickles are of protocol 2 (ml-dr's own are of 4), which today's
`torch.load` reads without a warning. Mixing goes out as it came in. Lost: the tail, keys, digests.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelstore.codecs.base import MapTopK, TopK
from labelstore.cropping.crop_plan import is_blended
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.exported import Export, ExportedBlock, Writer
from labelstore.exchange.labels import EncodableLabels
from labelstore.exchange.readers import fkd, label_maps
from labelstore.exchange.readers.image_orders import folder_order_of
from labelstore.exchange.readers.label_maps import ORDERS
from labelstore.exchange.readers.ml_dr import CONFIG, ENDING
from labelstore.store import Store


def save_torch(value: object, path: Path) -> None:
    """`torch.save` into a file whose folder may not be there yet. OSError where the disk refuses."""
    # torch's own writer makes a RuntimeError of a full disk
    data = io.BytesIO()
    torch.save(value, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.getbuffer())


KINDS = ("hard", "smoothing", "ms", "mr", "full")


class FkdWriter(Writer):
    """Writes one file per image."""

    def __init__(self, place: Path, export: Export) -> None:
        """UsageError for a codec that FKD does not have."""
        self.folder, self.kind = place, export.labels.codec.name
        if self.kind not in KINDS:
            raise UsageError(
                f"label set {export.labels.name} is {self.kind}: FKD's files hold {', '.join(KINDS)}; derive one "
                "with `labelstore.derive`"
            )
        self._written: set[str] = set()

    def write(self, block: ExportedBlock) -> int:
        """One file per image; RejectedInput where FKD has the same name for two images."""
        height, width = block.sides[:, :1, None], block.sides[:, 1:, None]
        sides = np.concatenate([height, width, height, width], axis=2)
        shares = (block.boxes / sides).astype(np.float32)
        for at, key in enumerate(block.keys):
            name = fkd.label_file(key)
            if name in self._written:
                raise RejectedInput(
                    f"{key}: FKD cuts names at the first dot, and {name} is another image's already: rename one"
                )
            self._written.add(name)
            value = [
                torch.from_numpy(shares[at]),
                torch.from_numpy(np.ascontiguousarray(block.flips[at])),
                self._labels(block.labels, at),
            ]
            save_torch(value, self.folder / name)
        return len(block.keys)

    def _labels(self, labels: EncodableLabels, at: int) -> Tensor:
        if not isinstance(labels, TopK):
            assert isinstance(labels, np.ndarray)
            return torch.from_numpy(np.ascontiguousarray(labels[at], np.float32))
        ids, probs = labels.class_ids[at], labels.probs[at]
        if self.kind == "hard":
            return torch.from_numpy(ids[:, 0].astype(np.int64))
        pairs = np.stack([ids.astype(np.float32), probs], axis=1)
        return torch.from_numpy(pairs[:, :, 0] if self.kind == "smoothing" else pairs)


EXACT_HALF = 2048
"""Largest class id up to which float16 keeps all of them apart."""


class ReLabelWriter(Writer):
    """Writes one float32 tensor (2, K, rows, columns) per image: outputs, then class ids."""

    form: ClassVar[tuple[str, ...]] = ("axis_order",)
    wants_maps: ClassVar[bool] = True
    dtype: ClassVar[type[np.floating]] = np.float32

    def __init__(self, place: Path, export: Export) -> None:
        """UsageError for an order that maps do not have."""
        order = export.form.axis_order or ORDERS[0]
        if order not in ORDERS:
            raise UsageError(f"`axis_order={order}`: label maps are {' or '.join(ORDERS)}")
        self.folder, self.turned = place, order == ORDERS[1]
        self._written: set[str] = set()

    def write(self, block: ExportedBlock) -> int:
        """One file per image; RejectedInput where two images would have the same, or outputs do not fit."""
        assert isinstance(block.labels, MapTopK)
        maps = np.stack([block.labels.logits, block.labels.class_ids.astype(np.float32)], axis=1)
        with np.errstate(over="ignore"):
            maps = maps.transpose(0, 1, 4, 2, 3).astype(self.dtype)
        if not np.isfinite(maps).all():
            at = int(np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2, 3, 4)))[0])
            raise RejectedInput(
                f"{block.keys[at]}: its outputs reach beyond {np.dtype(self.dtype)}: export relabel, which is float32"
            )
        if self.turned:
            maps = maps.swapaxes(3, 4)
        for at, key in enumerate(block.keys):
            name = label_maps.label_file(key)
            if name in self._written:
                raise RejectedInput(
                    f"{key}: its map would be {name}, which is another image's already: rename one"
                )
            self._written.add(name)
            save_torch(torch.from_numpy(np.ascontiguousarray(maps[at])), self.folder / name)
        return len(block.keys)


class TokenLabelingWriter(ReLabelWriter):
    """Writes float16 tensors; outputs are rounded to 11 bits where they were kept in more."""

    dtype: ClassVar[type[np.floating]] = np.float16

    def __init__(self, place: Path, export: Export) -> None:
        """UsageError where class ids do not fit float16."""
        super().__init__(place, export)
        if export.labels.num_classes - 1 > EXACT_HALF:
            raise UsageError(
                f"tokenlabeling keeps class ids in float16, which tells {EXACT_HALF + 1} classes apart, and "
                f"{export.labels.name} has {export.labels.num_classes}: export relabel"
            )


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
