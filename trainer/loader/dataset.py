"""Stored soft labels for plain torch: a Dataset of images, each item m crops with their labels.

dataset = CropDataset(labels, data, crops_per_image=4)
loader = DataLoader(
    dataset, batch_size=64, shuffle=True, num_workers=4, collate_fn=collate_crops
)
loss_of = SparseSoftCrossEntropy(dataset.temperature)
for p in range(75):                     # 75 passes of 4 crops are 300 epochs
    dataset.set_pass(p)
    for batch in loader:
        logits = model(batch["pixels"].float() / 255)
        loss = loss_of(logits, batch["class_ids"], batch["probs"], batch["rest"])
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from labelstore.errors import UsageError
from labelstore.images import ImageSource
from labelstore.scratch.folders import storage_errors
from trainer.loader.crop_pixels import CropPixels
from trainer.loader.image_files import path_by_key
from trainer.loader.pass_labels import PassLabels
from trainer.loader.source import DrawOptions
from trainer.loader.stored import StoredPasses
from trainer.sampler import PassSchedule

if TYPE_CHECKING:
    from labelstore.calibration.ensembles import Ensemble
    from labelstore.store import LabelSet, Mask

PASS_FILE = "pass.npy"
MOST_PASSES = 1000
"""Passes of a dataset that was not told how many there will be."""


class CropDataset(Dataset[dict[str, Tensor]]):
    """One item per image that has crops to draw; `set_pass` moves on to the next m crops of each.

    Works in workers of a DataLoader, forked or spawned, persistent or not: they map the labels that
    `set_pass` laid out in this process.
    """

    def __init__(
        self,
        labels: LabelSet | Ensemble,
        data: Path | str | ImageSource,
        crops_per_image: int = 4,
        mask: Mask | None = None,
        seed: int = 0,
        *,
        input_size: int = 224,
        interpolation: str = "bilinear",
        temperature: float | None = None,
        draw: DrawOptions | None = None,
        passes: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        """`passes` is how many there will be at most (1000): with anything that picks crops, that many are laid out.

        `temperature` T is the one of the teacher's logits, None the T0 at which the labels were made; the attribute
        `temperature` is the one in force, by which the student's logits are divided
        (`SparseSoftCrossEntropy(dataset.temperature)`).

        `draw` says which crops are drawn and in which order; a curriculum is spread over all of the `passes`, which
        must then be given. The mean of several teachers is a `labelstore.ensemble`, which has its own masks.

        Raises what `StoredPasses` raises, UsageError for a curriculum without `passes`, and RejectedInput where `data`
        does not hold the images.
        """
        draw = draw or DrawOptions()
        if passes is None and draw.order in ("easy-to-hard", "hard-to-easy"):
            raise UsageError(
                f"order={draw.order!r} is spread over the whole run: say with passes= how many there will be"
            )
        self._schedule = PassSchedule.of(
            passes=MOST_PASSES if passes is None else passes, crops_per_image=crops_per_image
        )
        self._source: StoredPasses | None = StoredPasses(
            labels,
            schedule=self._schedule,
            seed=seed,
            mask=mask,
            temperature=temperature,
            draw=draw,
            scratch=scratch,
        )
        self._process = os.getpid()
        self.counts, self.temperature = self._source.counts, self._source.temperature
        self.num_classes = labels.num_classes
        self.images = self._source.table.images
        self._keys, self._sizes = self._source.table.keys, self._source.table.sizes
        self._planes, self._tails = self._source.planes, self._source.tails
        folder = data if isinstance(data, ImageSource) else Path(data)
        self._pixels = CropPixels(
            path_of=path_by_key(folder, self._keys[0]),
            input_size=input_size,
            interpolation=interpolation,
            partners=self._source.partners,
            augmentation=self._source.augmentation,
        )
        # a file and not an attribute: workers that live on see the next pass, too
        np.save(self._planes.path / PASS_FILE, np.zeros(1, np.int64))
        self._pass = self._map_pass("r+")
        self._labels: tuple[int, PassLabels] | None = None
        self.set_pass(0)

    def set_pass(self, pass_index: int) -> None:
        """Lay out the labels of a pass; call it in the main process, between two loops over the loader."""
        if self._source is None or os.getpid() != self._process:
            raise UsageError(
                "set_pass in a worker process: call it in the process that made the dataset"
            )
        self._source.pass_labels(pass_index)
        self._source.prepare_later(pass_index + 1)
        self._pass[0] = pass_index

    def close(self) -> None:
        """Remove the labels that were laid out; done at exit otherwise."""
        if self._source is not None:
            self._source.close()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """pixels uint8 (m, 3, S, S); class_ids (m, K), probs (m, K), rest (m,); image, crops (m,)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        place = index % len(self)
        places = np.array([place])
        taken = self._pass_labels().take(places)
        (records,) = taken
        size = self._pixels.input_size
        pixels = torch.empty((len(records), 3, size, size), dtype=torch.uint8)
        self._pixels.write(self._keys[place], self._sizes[place], records, pixels)
        labels = self._pass_labels().labels_of(taken, places)
        return {
            "pixels": pixels,
            # dense labels share one row of ids, which torch would not take
            "class_ids": torch.from_numpy(np.require(labels.class_ids[0], requirements="W")),
            "probs": torch.from_numpy(labels.probs[0]),
            "rest": torch.from_numpy(labels.rest[0]),
            "crops": torch.from_numpy(records["crop"].astype(np.int64)),
            "image": torch.tensor(int(self.images[place])),
        }

    def __getstate__(self) -> dict[str, Any]:
        # a worker reads planes; the store's handles and the folder stay with the process that made them
        return {**self.__dict__, "_source": None, "_pass": None, "_labels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pass = self._map_pass("r")

    def _map_pass(self, mode: Literal["r", "r+"]) -> NDArray[np.int64]:
        path = self._planes.path / PASS_FILE
        with storage_errors(path):
            mapped: NDArray[np.int64] = np.load(path, mmap_mode=mode)
        return mapped

    def _pass_labels(self) -> PassLabels:
        pass_index = int(self._pass[0])
        if self._labels is None or self._labels[0] != pass_index:
            positions = self._schedule.positions(pass_index)
            self._planes.forget(positions.start, remove=False)
            planes = tuple(self._planes.plane(position) for position in positions)
            labels = PassLabels(
                images=self.images,
                num_classes=self.num_classes,
                planes=planes,
                tails=self._tails,
            )
            self._labels = (pass_index, labels)
        return self._labels[1]


def collate_crops(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Items of b images -> one batch of b * m crops, crops of an image adjacent; `image` stays (b,)."""
    batch = {
        name: torch.cat([item[name] for item in items]) for name in items[0] if name != "image"
    }
    return {**batch, "image": torch.stack([item["image"] for item in items])}
