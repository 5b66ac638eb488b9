"""What goes out: which images and crops, what a format's writer is given, and what it must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.exchange.labels import EncodableLabels
from labelstore.images import ImageSource

if TYPE_CHECKING:
    from labelstore.store import LabelSet


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which images and crops go out; everything by default."""

    classes: Sequence[str] = ()
    """Names of classes of the ground truth."""
    images: Sequence[str] = ()
    """Keys."""
    crops: range | None = None
    """Crop numbers."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """Where a format leaves a choice; None: as its own project does."""

    axis_order: str | None = None
    """Axis order of label maps: rows-first or columns-first."""
    images: str | Path | ImageSource | None = None
    """Images that go out beside their labels, as `images.open_images` takes them."""
    shard_mb: int | None = None
    """Largest file of a format that packs many images into one, 10^6 bytes."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """One export, as its writer sees it."""

    labels: LabelSet
    crops: range
    num_images: int
    """Images that will go out."""
    form: Form
    kept: int | None
    """K of every label, as written; None where labels are dense or maps."""
    as_maps: bool
    """Whether the labels are maps of whole images."""
    is_mixed: bool
    """Whether crops were mixed with others before the teacher saw them."""
    temperature: float
    """T of the labels as they go out."""

    @property
    def gives_outputs(self) -> bool:
        """Whether dense labels are outputs before softmax, not probabilities."""
        return self.labels.codec.takes == "outputs"


@dataclass(frozen=True, kw_only=True)
class ExportedBlock:
    """The chosen images of one image block: n images, m crops, K kept classes."""

    keys: Sequence[str]
    rows: NDArray[np.int64]
    """(n,) image rows of the store."""
    ground_truth: NDArray[np.int32]
    """(n,) class of each image, -1 where there is none."""
    sides: NDArray[np.int64]
    """(n, 2) height and width of the images, pixels."""
    boxes: NDArray[np.uint16]
    """(n, m, 4) top, left, height, width."""
    flips: NDArray[np.bool_]
    """(n, m)."""
    labels: EncodableLabels
    """(n, m, K) classes, probabilities and tail, dense (n, m, C), or n maps for a writer that wants these."""
    mixed: Mapping[str, NDArray[Any]] | None = None
    """How crops were mixed: the fields of `schema.MIX_FIELDS`, (n, m, ...)."""


class Writer(ABC):
    """One format: writes its files to a temporary place until the export is whole."""

    single_file: ClassVar[bool] = False
    """Whether the place is one file, not a folder."""
    form: ClassVar[tuple[str, ...]] = ()
    """Fields of `Form` that it knows."""
    wants_maps: ClassVar[bool] = False
    """Whether it writes the maps of label maps; otherwise it is given the labels of their crops."""
    made_at: ClassVar[float | None] = None
    """The one temperature that readers of the format take labels for; None where it is not settled."""
    keeps_mixing: ClassVar[bool] = False
    """Whether it can say what crops were mixed with."""
    keeps_augmentation: ClassVar[bool] = False
    """Whether it has the plan's parameters, which say how crops were augmented."""

    @abstractmethod
    def __init__(self, place: Path, export: Export) -> None:
        """UsageError for labels that the format cannot hold, before anything is written."""

    @abstractmethod
    def write(self, block: ExportedBlock) -> int:
        """Write some images; the number of files begun."""

    def finish(self) -> int:
        """Write what comes last; the number of files."""
        return 0

    def abandon(self) -> None:
        """Let go of what is open, after `finish` or an error."""
        return
