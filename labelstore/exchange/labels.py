"""What a format's reader hands over per image, what a source of labels is, and what a label codec wants of it.

A format is a function `open_FORMAT(source, images, stated) -> LabelSource`. Where a file belongs to one image, `read`
opens it; where files hold pieces of many images, opening the source lays them out by image first (`readers.sources`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs import top_k
from labelstore.codecs.base import LabelCodec, MapTopK, TopK
from labelstore.commit.lease_keeper import Progress
from labelstore.errors import RejectedInput, UsageError
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource

Kind: TypeAlias = Literal["kept", "kept-outputs", "probabilities", "outputs", "embedding", "map"]
"""`kept`: the K largest probabilities; `kept-outputs`: the K largest outputs before softmax; `probabilities` and
`outputs`: of all C classes; `embedding`: D values that are no classes; `map`: the K largest outputs in each cell of a
map of the image."""
EncodableLabels: TypeAlias = TopK | MapTopK | NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ImageLabels:
    """One image's labels as a file has them, checked."""

    labels: EncodableLabels
    """TopK (m, K) (for `kept-outputs` with outputs in `probs`), dense (m, C), or a MapTopK of one image."""
    boxes: NDArray[np.uint16] | None = None
    """(m, 4) pixels; None for a map."""
    flips: NDArray[np.bool_] | None = None
    """(m,)."""
    mixed: Mapping[str, NDArray[Any]] | None = None
    """How the crops were mixed before the teacher saw them: the fields of `schema.MIX_FIELDS`, (m, ...)."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the labels of a source are, found by looking at the first ones."""

    kind: Kind
    num_crops: int
    """M; 1 for maps."""
    k: int | None = None
    """K where classes are left out."""
    num_classes: int | None = None
    """C where the labels have all classes; D of an embedding."""
    dtype: str
    """dtype of the numbers, as NumPy writes it."""
    cells: tuple[int, int] | None = None
    """Rows and columns of a map."""
    mixed: bool = False
    """Whether crops were mixed with others before the teacher saw them."""
    temperature: float | None = None
    """Temperature of the softmax that made the probabilities; None for outputs, and where neither the format nor its
    files say it."""
    blended: bool = False
    """Whether a mixed crop may have been both blended with the other and partly replaced by it."""
    input_size: int | None = None
    """Side of the teacher's input in pixels, where the files prove it."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """From a file's labels to what the codec of the new label set encodes."""

    kind: Kind
    codec: LabelCodec
    num_classes: int
    temperature: float
    """Temperature of the softmax where the file has outputs; otherwise that of its probabilities."""

    def __call__(self, labels: EncodableLabels) -> EncodableLabels:
        """Labels of one image as the codec takes them: TopK (m, K), dense (m, C) or a map."""
        if isinstance(labels, MapTopK):
            return labels
        if isinstance(labels, TopK):
            return self._fewer(labels)
        if self.kind == "outputs" and self.codec.takes != "outputs":
            labels = softmax(labels, self.temperature)
        kept = self.codec.kept(self.num_classes)
        return labels if kept is None else top_k(labels, kept)

    def _fewer(self, labels: TopK) -> TopK:
        if self.kind == "kept-outputs":
            probs = softmax(labels.probs, self.temperature)
            labels = TopK(
                class_ids=labels.class_ids, probs=probs, tail=np.zeros(len(probs), np.float32)
            )
        kept = self.codec.kept(self.num_classes)
        if kept is None or kept == labels.probs.shape[-1]:
            return labels
        beyond = labels.probs[..., kept:].sum(-1, dtype=np.float64)
        return TopK(
            class_ids=labels.class_ids[..., :kept],
            probs=labels.probs[..., :kept],
            tail=(labels.tail + beyond).astype(np.float32),
        )


def check_conversion(
    contents: Contents, codec: LabelCodec, num_classes: int, format_name: str
) -> None:
    """UsageError where labels of this kind cannot be had as the codec asks, with what can be asked for."""
    kept = codec.kept(num_classes)
    has = {
        "kept": f"the {contents.k} largest probabilities of each crop",
        "kept-outputs": f"the {contents.k} largest outputs of each crop, before softmax and without the others' mass",
        "probabilities": "all probabilities",
        "outputs": "all outputs before softmax",
        "embedding": f"the {contents.num_classes} values of an embedding of each crop",
        "map": "a map of outputs per image",
    }[contents.kind]
    fitting: dict[str, tuple[str, ...]] = {
        "kept": ("ms", "mr", "smoothing", "hard"),
        "kept-outputs": ("mr", "hard"),
        "probabilities": ("full", "ms", "mr", "smoothing", "hard"),
        "outputs": ("logits", "full", "ms", "mr", "smoothing", "hard"),
        "embedding": ("logits",),
        "map": ("labelmap",),
    }
    allowed = fitting[contents.kind]
    if contents.kind == "kept" and contents.k == 1:
        allowed = ("smoothing", "hard", "ms")
    if codec.name not in allowed:
        raise UsageError(
            f"`compression={codec.name}`: these {format_name} files hold {has}; choose {', '.join(allowed)}"
        )
    if contents.k is not None and kept is not None and kept > contents.k:
        raise UsageError(
            f"`k={kept}`: these {format_name} files hold {has}; choose 1 to {contents.k}"
        )
    if contents.num_classes is not None and contents.num_classes != num_classes:
        raise UsageError(
            f"`num_classes={num_classes}`: these {format_name} files hold {contents.num_classes} of each crop; "
            "leave it out"
        )


def softmax(outputs: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """softmax(outputs / T) along the last axis."""
    scaled: NDArray[Any] = outputs - outputs.max(-1, keepdims=True)
    scaled /= np.float32(temperature)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(-1, keepdims=True)
    return scaled


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """One file that cannot be used."""

    file: str
    reason: str
    image: str | None = None
    """Key of the image whose labels it would have been."""


@dataclass(kw_only=True)
class LabelSource(ABC):
    """Labels of one source for the images of one folder. Goes to worker processes, so it must be picklable."""

    contents: Contents
    unmatched: Sequence[str] = ()
    """Label files that belong to no image of the folder."""
    lost: Sequence[str] = ()
    """What the files tell of their crops and a store cannot keep."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was found out about the source, as JSON values."""
    bad: Sequence[BadFile] = ()
    """Files that were found unusable while the source was opened."""

    @abstractmethod
    def file_of(self, image: int) -> Path:
        """Where the labels of an image are."""

    @abstractmethod
    def read(self, image: int, height: int, width: int) -> ImageLabels:
        """Labels of an image of this size, M crops. RejectedInput naming the file."""

    def prepare(self, scratch: Path | None, progress: Progress) -> None:
        """Prepare, once, for the reading of images; `scratch` is where large files may lie."""
        return

    def read_many(
        self, images: Sequence[int], sizes: Sequence[tuple[int, int]]
    ) -> list[ImageLabels] | None:
        """`read` of several images of these heights and widths at once, the same labels in less time.

        None where a format has no faster way, or anything about them is not as it must be: `read` then says what.
        """
        return None

    def close(self) -> None:
        """Remove what was laid out."""
        return


def read_together(
    source: LabelSource, images: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> list[ImageLabels | RejectedInput]:
    """Labels of several images; for an image that cannot be used, the reason instead."""
    many = source.read_many(images, sizes) if len(images) > 1 else None
    if many is not None:
        return [*many]
    results: list[ImageLabels | RejectedInput] = []
    for image, (height, width) in zip(images, sizes, strict=True):
        try:
            results.append(source.read(image, height, width))
        except RejectedInput as error:
            results.append(error)
    return results


OpenSource: TypeAlias = Callable[[Path, ImageSource, Stated], LabelSource]
