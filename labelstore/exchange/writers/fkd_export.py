"""FKD's layout out, as plain tensors: FKD's own training script reads it with today's `torch.load`, and so does
everybody.

The files are those of `exchange.fkd`, with tensors instead of pickled arrays (which `weights_only=True` refuses).
Boxes are shares of the image's sides in float32, which `replay` and the importer turn back into the same pixels.
Lost: the tail of `ms` (FKD spreads one minus the sum), class table, digests, the teacher. Probabilities are float32: as
stored, or what float16 and 8-bit labels recover to.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labelstore.codecs.base import TopK
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.exported import Export, ExportedBlock, Writer
from labelstore.exchange.labels import EncodableLabels
from labelstore.exchange.readers.fkd import label_file
from labelstore.exchange.writers.torch_files import save_torch

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
            name = label_file(key)
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
