"""What goes out: which images and crops, what a format's writer is given block by block, and what it must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs import LabelMap, widen
from labelstore.codecs.base import MapTopK, TopK
from labelstore.exchange.labels import EncodableLabels
from labelstore.images import ImageSource
from labelstore.store.layout import MIX_FIELDS

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

    def label_arrays(self, export: Export) -> dict[str, NDArray[Any]]:
        """The labels (n, m, ...) by what they are: class_id, prob and tail; prob of all classes; or logit."""
        labels = self.labels
        if isinstance(labels, TopK):
            return {"class_id": labels.class_ids, "prob": labels.probs, "tail": labels.tail}
        assert isinstance(labels, np.ndarray)
        return {"logit" if export.gives_outputs else "prob": labels}


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


def read_block(
    export: Export, block: int, rows: NDArray[np.int64], inside: NDArray[np.int64]
) -> ExportedBlock:
    """The images `inside` (places in the block, whose image rows are `rows`) with the export's crops."""
    labels, crops = export.labels, export.crops
    per = labels.plan.crops_per_chunk
    columns = range(crops.start // per, -(-crops.stop // per))
    within = slice(crops.start - columns.start * per, crops.stop - columns.start * per)
    if export.as_maps:
        columns, within = range(1), slice(0, 1)
    boxes, flips = labels.crops(block, columns)
    facts: Mapping[str, NDArray[Any]] = labels.store.image_columns
    chosen = rows[inside]
    mixed = None
    if export.is_mixed:
        group = labels.store.group(f"crops/{labels.plan.name}")
        mixed = {
            field.name: group.read(block, columns, field.name)[inside, within]
            for field in MIX_FIELDS
        }
    return ExportedBlock(
        keys=[str(facts["key"][row]) for row in chosen],
        rows=chosen,
        ground_truth=labels.ground_truth[chosen],
        sides=np.stack([facts["height"][chosen], facts["width"][chosen]], 1).astype(np.int64),
        boxes=boxes[inside, within],
        flips=flips[inside, within],
        labels=(
            _maps(labels, block, inside)
            if export.as_maps
            else _labels(export, block, columns, inside, within)
        ),
        mixed=mixed,
    )


def _maps(labels: LabelSet, block: int, inside: NDArray[np.int64]) -> MapTopK:
    (arrays,) = labels.store.group(f"labels/{labels.name}").parts(block, None)
    return MapTopK(
        class_ids=arrays["map_class"][inside],
        logits=arrays["map_logit"][inside].astype(np.float32),
    )


def _labels(
    export: Export, block: int, columns: range, inside: NDArray[np.int64], within: slice
) -> EncodableLabels:
    """Labels as stored where that is float32 or outputs: recovering would scale them, and move their last place."""
    labels, codec = export.labels, export.labels.codec
    group = labels.store.group(f"labels/{labels.name}")
    if codec.takes == "outputs":
        return labels.raw_outputs(block, columns)[inside, within]
    at = export.temperature
    as_stored = (
        getattr(codec, "dtype", None) == "float32"
        and codec.takes == "probabilities"
        and at == labels.temperature
    )
    # an image's tail is no probability of the crop: such labels are exported as they are recovered
    as_stored &= not getattr(codec, "tail_classes", 0)
    if export.kept is None:
        if as_stored:
            return np.asarray(group.read(block, columns, "probability")[inside, within])
        return labels.dense(block, columns, at)[inside, within]
    sparse = labels.sparse(block, columns, at)
    if isinstance(codec, LabelMap):
        sparse = widen(sparse, export.kept, labels.num_classes)
    probs = group.read(block, columns, "probability") if as_stored else sparse.probs
    tail = (
        group.read(block, columns, "tail")
        if as_stored and "tail" in group.specs
        else sparse.rest * np.float32(labels.num_classes - export.kept)
    )
    return TopK(
        class_ids=sparse.class_ids[inside, within],
        probs=probs[inside, within],
        tail=tail[inside, within],
    )
