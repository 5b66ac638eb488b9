"""Rows of the catalogue as frozen dataclasses: what callers see instead of SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from labelstore.arrays.shard_files import ShardFile

DERIVED = "derived from "
"""How the ledger's device begins for a shard that no teacher made."""
IMPORTED = "imported"
"""The ledger's device of imported labels: unknown."""


def is_without_teacher(device: str) -> bool:
    """Whether no teacher was at work here for a shard that the ledger has with this device."""
    return device == IMPORTED or device.startswith(DERIVED)


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One image: its row number never changes and is never given to another image."""

    image: int
    key: str
    """Path relative to the image folder, NFC, POSIX."""
    class_id: int
    """Ground truth: index into the classes table; -1 where there is none."""
    width: int | None = None
    height: int | None = None
    digest: bytes | None = None
    """First 16 bytes of the SHA-256 of the file's bytes; recorded with the shard that first decodes it."""
    size: int | None = None
    """File size in bytes at registration."""
    mtime_ns: int | None = None
    bad: str | None = None
    """Why the image was left out (`--skip-bad`), or None."""


@dataclass(frozen=True, kw_only=True)
class TeacherRow:
    """One teacher, as it was loaded."""

    name: str
    source: str
    """timm:NAME, torchvision:NAME, a checkpoint's or run folder's path as given."""
    architecture: str
    digest: str
    """SHA-256 over the weights in state-dict order."""
    num_classes: int
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    top1: float | None = None
    """Measured on --val, as a share."""
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known: the evaluation behind `top1`, `crop_mode` of evaluation, which `weights` of a checkpoint
    that holds several (ema or raw), a dense head, how it was trained."""

    @property
    def crop_mode(self) -> str:
        """timm's crop mode of evaluation: center, squash or border; center where it was not recorded."""
        return str(self.facts.get("crop_mode", "center"))

    @property
    def identity(self) -> Mapping[str, Any]:
        """What makes its labels, by name: its weights and what it sees. Equal in two rows of one teacher."""
        return {
            "weights": self.digest,
            "classes": self.num_classes,
            "input size": self.input_size,
            "mean": tuple(self.mean),
            "std": tuple(self.std),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
        }


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """A crop plan and the layout that every label set and mask on it shares."""

    name: str
    num_crops: int
    images_per_shard: int
    crops_per_shard: int
    crops_per_chunk: int
    stored: bool
    """False: `--crops seeded`, boxes and flips are computed from the plan instead of read."""
    parameters: Mapping[str, Any]
    """`CropPlan.to_record()`: seed, scale, ratio, flip_prob; `augmentation` where crops are augmented."""


@dataclass(frozen=True, kw_only=True)
class LabelSetRow:
    """One teacher x one codec over one plan."""

    name: str
    plan: str
    teacher: str
    num_classes: int
    codec: Mapping[str, Any]
    """`LabelCodec.to_record()`."""
    uuid: str
    temperature: float = 1.0
    """T0, the temperature of the teacher's softmax in these labels; 1 for outputs before softmax and label maps."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """How the labels came about and what nothing else here says: autocast, class map, images as given and their kind,
    `imported_from`, and under `stated` what a user said of imported labels."""

    @property
    def is_settled(self) -> bool:
        """False until the first shard has decided how class ids are stored: no array is known before."""
        return self.codec.get("class_ids", "plain") is not None


@dataclass(frozen=True, kw_only=True)
class MaskRow:
    """Region codes of one teacher's labels on one plan under one rule."""

    name: str
    plan: str
    teacher: str
    label_set: str
    """The label set that it was computed from: the teacher's richest one."""
    num_crops: int
    """Crops that the mask covers: the plan's M when it was made."""
    rule: Mapping[str, Any]
    """Thresholds, criterion, epsilon, quantiles asked for, and the temperature of the labels where it is not 1."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write one image block of one group until it expires."""

    group: str
    """"labels/NAME" or "masks/NAME"."""
    block: int
    owner: str
    expires: float
    """Unix seconds by the catalogue's clock."""
    fence: int
    """Grows with every lease of this block: a commit with an older number is refused."""
    identity: str = ""
    """`leases.identity` of the group when the lease was granted: a commit after it was dropped, or created again, is
    refused. Held by the worker only, the catalogue looks the group's up."""


@dataclass(frozen=True, kw_only=True)
class ShardRow:
    """A committed shard: the ledger's word that these bytes exist."""

    group: str
    """"crops/PLAN", "labels/NAME" or "masks/NAME"."""
    block: int
    crop_shard: int
    files: tuple[ShardFile, ...]
    num_images: int
    """Images with labels in it: the block's less the bad ones."""
    fence: int
    seconds: float = 0.0
    device: str = ""
    committed: float = 0.0
    """Unix seconds."""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One training."""

    name: str
    folder: str
    label_sets: tuple[str, ...]
    masks: tuple[str, ...]
    config: Mapping[str, Any]
    """`TrainConfig` as it was run, with the label sets' uuids and digests in it."""
    started: float
    """Unix seconds."""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One figure of one run."""

    run: str
    name: str
    """"top1", "top5", "real/top1", ..."""
    epoch: int
    value: float
