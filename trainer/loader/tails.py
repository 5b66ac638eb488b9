"""Tables of the images' tails beside the planes: what labels need that keep how their tails are spread once per image.

A table belongs to an image and a crop shard. The planes' folder has a file of them per crop shard, a record per image
in the order of the planes, as the store has them; planes name the shard of every crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelstore.codecs import SparseLabels
from labelstore.codecs.image_tail import TailedLabels, TailTables, listed, read_tails, tail_fields
from trainer.label_tensors import LabelTensors
from trainer.loader.planes import PlaneFolder, Records, as_bytes


def tail_dtype(tail_classes: int, num_classes: int) -> np.dtype[np.void]:
    """One image's table of one crop shard."""
    fields = tail_fields(tail_classes, num_classes)
    return np.dtype([(field.name, field.dtype, field.shape) for field in fields], align=True)


@dataclass(frozen=True, kw_only=True)
class TailFiles:
    """Where the tables of a run are."""

    folder: PlaneFolder
    """A file per crop shard."""
    temperature: float
    """T / T0: that of the run's labels, over that at which the tables were made."""

    def tables(self, shard: int, indices: NDArray[np.intp]) -> TailTables:
        """Tables of b images, as indices into those that are drawn."""
        records = as_bytes(np.asarray(self.folder.plane(shard))).take(indices)
        records = records.view(self.folder.dtype)
        arrays = {name: records[name] for name in self.folder.dtype.names or ()}
        return read_tails(arrays).tempered(self.temperature)

    def listed(
        self, labels: SparseLabels, records: Records, indices: NDArray[np.intp]
    ) -> SparseLabels:
        """Labels (b, m, K) of records (b, m) with the classes of their tables listed: (b, m, K + L)."""
        joined: SparseLabels | None = None
        for shard in np.unique(records["shard"]):
            own = listed(
                TailedLabels(
                    labels=labels, scale=records["scale"], tables=self.tables(int(shard), indices)
                )
            )
            here = records["shard"] == shard
            joined = own if joined is None else _chosen(here, own, joined)
        assert joined is not None
        return joined

    def of_batch(self, records: Records, indices: NDArray[np.intp]) -> BatchTails:
        """The tables of a batch's images, each once where all crops are of one crop shard."""
        shards, place = np.unique(records["shard"], return_inverse=True)
        found = [self.tables(int(shard), indices) for shard in shards]
        class_ids = np.concatenate([tables.class_ids for tables in found]).astype(np.int64)
        shares = np.concatenate([tables.shares for tables in found])
        image = np.arange(len(indices))[:, None]
        return BatchTails(
            # an entry without a class has no share, and so adds nothing to class 0
            class_ids=torch.from_numpy(np.where(shares > 0, class_ids, 0)),
            shares=torch.from_numpy(shares),
            scale=torch.from_numpy(np.ascontiguousarray(records["scale"]).reshape(-1)),
            table=torch.from_numpy(
                (place.reshape(records.shape) * len(indices) + image).reshape(-1)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class BatchTails:
    """How the tails of a batch's crops are spread: t tables, one for each image of most batches."""

    class_ids: Tensor
    """int64 (t, L)."""
    shares: Tensor
    """float32 (t, L), 0 where there is no class."""
    scale: Tensor
    """float32 (B,)."""
    table: Tensor
    """int64 (B,) which table is a crop's."""

    def to(self, device: torch.device) -> BatchTails:
        """The same on a device."""
        return BatchTails(
            **{name: value.to(device, non_blocking=True) for name, value in vars(self).items()}
        )

    def part(self, crops: slice) -> BatchTails:
        """Tails of some crops; the tables stay."""
        return BatchTails(
            class_ids=self.class_ids,
            shares=self.shares,
            scale=self.scale[crops],
            table=self.table[crops],
        )

    def listed(self, labels: LabelTensors) -> LabelTensors:
        """Labels (B, K) with their tables' classes listed: (B, K + L).

        A class of the table that the crop lists already is listed with `rest` the second time, which adds nothing.
        """
        class_ids, probs, rest = labels
        ids, shares = self.class_ids[self.table], self.shares[self.table]
        low = rest.unsqueeze(-1)
        mass = torch.clamp(self.scale.unsqueeze(-1) * shares, min=low, max=probs[:, -1:])
        there = shares == 0
        for rank in range(class_ids.shape[-1]):
            there |= ids == class_ids[:, rank, None]
        return (
            torch.cat([class_ids, ids], dim=-1),
            torch.cat([probs, torch.where(there, low, mass)], dim=-1),
            rest,
        )


def _chosen(here: NDArray[np.bool_], own: SparseLabels, others: SparseLabels) -> SparseLabels:
    wide = here[..., None]
    return SparseLabels(
        class_ids=np.where(wide, own.class_ids, others.class_ids),
        probs=np.where(wide, own.probs, others.probs),
        rest=np.where(here, own.rest, others.rest),
    )
