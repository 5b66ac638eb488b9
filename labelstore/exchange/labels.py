"""What a format's reader hands over per image, and what a label codec wants of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs import top_k
from labelstore.codecs.base import LabelCodec, MapTopK, TopK
from labelstore.errors import UsageError

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
    k: int | None
    """K where classes are left out."""
    num_classes: int | None
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
