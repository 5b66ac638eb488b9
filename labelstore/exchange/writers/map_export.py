"""Label maps out: ReLabel's and TokenLabeling's tensors, one file per image, as `exchange.label_maps` reads them.

ReLabel's files are float32, TokenLabeling's float16. The map is written rows first, which is how TokenLabeling
writes and
`torch` reads an image; `--axis-order columns-first` writes it turned, for a reader that expects ReLabel's maps so.
Lost: the crop plan (a map serves any crop), the size that the teacher saw, digests, the teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from labelstore.codecs.base import MapTopK
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.exported import Export, ExportedBlock, Writer
from labelstore.exchange.readers.label_maps import ORDERS, label_file
from labelstore.exchange.writers.torch_files import save_torch

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
            name = label_file(key)
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
