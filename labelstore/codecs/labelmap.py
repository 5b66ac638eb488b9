"""`labelmap`: one map of top-K logits per image, from which the label of any crop is pooled (ReLabel).

The teacher sees the whole image, squashed to a square of `image_size` pixels, and its head is applied to every cell of
its last features: (H, W, C) logits, of which each cell keeps the K largest. A crop's label is

    softmax( RoIAlign(map, box) / T )      with logit 0 wherever a cell does not keep a class

(ReLabel 3.2 and its reference decoder: 0, not minus infinity). So a class that no cell keeps has exactly the
probability `rest`. Rows of the map run down the image, columns across; boxes are (top, left, height, width). The
reference decoder passes boxes to RoIAlign with the axes the other way round, which pools the region mirrored
about the diagonal; here a crop is pooled where it lies. Flips do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import (
    Arrays,
    Field,
    LabelCodec,
    MapTopK,
    SparseLabels,
    Takes,
    TopK,
    check_dtype,
    id_dtype,
    missing_id,
)
from labelstore.codecs.class_union import filled
from labelstore.codecs.raw_outputs import check_range
from labelstore.codecs.recovery import check_temperature
from labelstore.codecs.topk import check_kept
from labelstore.errors import UsageError

MAX_CELLS = 1024
"""Largest side of a map: a guard against a wicked store; ReLabel's is 15."""
VALUES_TOGETHER = 1 << 23
"""Values of dense maps and weights held at once: 32 MB."""
_DTYPES = {"float32": "<f4", "float16": "<f2"}


@dataclass(frozen=True, kw_only=True)
class LabelMap(LabelCodec):
    """`labelmap`: per image the top-K class ids and logits of every cell, (H, W, K) each."""

    name: ClassVar[str] = "labelmap"
    takes: ClassVar[Takes] = "map"
    k: int = 5
    """Classes kept per cell."""
    dtype: str = "float16"
    """dtype of the logits: float16 or float32."""
    height: int | None = None
    """Rows of the map; None until the teacher is known."""
    width: int | None = None
    """Columns of the map."""
    image_size: int | None = None
    """Side of the square that the whole image was resized to, pixels."""

    def __post_init__(self) -> None:
        check_dtype(self.dtype, _DTYPES)
        if self.k < 1:
            raise UsageError(f"K={self.k}: keep at least one class with `k`")
        for what in ("height", "width"):
            cells = getattr(self, what)
            if cells is not None and not 1 <= cells <= MAX_CELLS:
                raise UsageError(f"a label map with {what} {cells}: 1 to {MAX_CELLS} cells")

    def kept(self, num_classes: int) -> int:
        """K, of every cell; a crop's label lists more. UsageError where K > C."""
        return check_kept(self.k, num_classes)

    def fields(self, num_classes: int) -> tuple[Field, ...]:
        """`map_class` and `map_logit`, (H, W, K) per image."""
        k = self.kept(num_classes)
        if self.height is None or self.width is None:
            raise UsageError(
                "the size of a label map is its teacher's, and no teacher is known yet"
            )
        shape, dimensions = (self.height, self.width, k), ("row", "column", "kept")
        ids = id_dtype(num_classes)
        return (
            Field(
                name="map_class",
                dtype=ids.str,
                shape=shape,
                dimensions=dimensions,
                per="image",
                fill=missing_id(ids),
            ),
            Field(
                name="map_logit",
                dtype=_DTYPES[self.dtype],
                shape=shape,
                dimensions=dimensions,
                per="image",
                fill=float("nan"),
            ),
        )

    def encode(
        self, labels: TopK | MapTopK | NDArray[np.float32], num_classes: int
    ) -> dict[str, NDArray[Any]]:
        """Maps of n images -> arrays by field name; images of NaN are missing. RejectedInput beyond the dtype's
        range."""
        if not isinstance(labels, MapTopK):
            raise UsageError(
                "labels of crops given to a label map: it wants the map of whole images"
            )
        shape = (self.height, self.width, self.kept(num_classes))
        if labels.class_ids.shape[1:] != shape:
            raise UsageError(f"maps of {labels.class_ids.shape[1:]} given where {shape} are due")
        check_range(labels.logits, self.dtype)
        ids = id_dtype(num_classes)
        missing = np.isnan(labels.logits)
        return {
            "map_class": np.where(missing, missing_id(ids), labels.class_ids).astype(ids),
            "map_logit": labels.logits.astype(_DTYPES[self.dtype]),
        }

    def listed(self, arrays: Arrays, num_classes: int) -> int:
        """Classes that the longest label of these maps lists: distinct ones anywhere in one image's map."""
        ids = np.sort(_flat(arrays["map_class"]), axis=-1)
        new = (ids[:, 1:] != ids[:, :-1]).sum(axis=-1) + 1
        return min(int(new.max(initial=1)), num_classes)

    def decode(self, arrays: Arrays, num_classes: int, temperature: float = 1.0) -> SparseLabels:
        """Maps of n images and `box` (n, m, 4) in shares of the image -> labels (n, m, K') of the crops.

        K' is the number of classes in the fullest map; labels are sorted descending, and a class whose pooled
        logit is negative comes below `rest`. Crops without a box are NaN.
        """
        check_temperature(temperature)
        boxes = arrays["box"]
        height, width = arrays["map_class"].shape[1:3]
        listed = self.listed(arrays, num_classes)
        n, m = boxes.shape[:2]
        ids = id_dtype(num_classes)
        found = SparseLabels(
            class_ids=np.empty((n, m, listed), ids),
            probs=np.empty((n, m, listed), np.float32),
            rest=np.empty((n, m), np.float32),
        )
        cells = height * width
        step = max(1, VALUES_TOGETHER // max(cells * listed, m * cells, m * listed, 1))
        for first in range(0, n, step):
            part = slice(first, first + step)
            classes, dense = _dense_maps(
                arrays["map_class"][part], arrays["map_logit"][part], listed, num_classes
            )
            down = axis_weights(boxes[part, :, 0], boxes[part, :, 2], height)
            across = axis_weights(boxes[part, :, 1], boxes[part, :, 3], width)
            weights = (down[..., :, None] * across[..., None, :]).reshape(*down.shape[:2], cells)
            logits = np.matmul(weights, dense)
            _softmax_into(found, part, classes, logits, num_classes, np.float32(temperature))
        return found

    def max_probability(self, arrays: Arrays, num_classes: int) -> NDArray[np.float32]:
        """Maps and `box` (n, m, 4) -> largest entry of every label (n, m), NaN where missing."""
        labels = self.decode(arrays, num_classes)
        first: NDArray[np.float32] = labels.probs[..., 0]
        if labels.probs.shape[-1] < num_classes:
            first = np.maximum(first, labels.rest)
        return np.ascontiguousarray(first)

    def max_probability_fields(self, num_classes: int) -> tuple[str, ...]:
        """Names of the arrays that `max_probability` reads, beside the boxes."""
        return ("map_class", "map_logit")


def _flat(ids: NDArray[Any]) -> NDArray[Any]:
    """(n, H, W, K) -> (n, H * W * K)."""
    return ids.reshape(len(ids), -1)


def _dense_maps(
    ids: NDArray[Any], logits: NDArray[Any], listed: int, num_classes: int
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Classes (n, listed) of each image, distinct, and logits (n, cells, listed) with 0 where a cell keeps none."""
    n, height, width, kept = ids.shape
    flat = _flat(ids)
    order = np.argsort(flat, axis=-1, kind="stable")
    ranked = np.take_along_axis(flat, order, -1)
    new = np.ones(ranked.shape, bool)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    place = np.cumsum(new, axis=-1) - 1
    classes = np.empty((n, listed), ids.dtype)
    np.put_along_axis(classes, place, ranked, -1)
    missing = flat[:, 0] == missing_id(ids.dtype)
    classes = filled(classes, np.where(missing, 0, new.sum(axis=-1)))
    classes[missing] = missing_id(ids.dtype)
    places = np.empty_like(place)
    np.put_along_axis(places, order, place, -1)
    cells = height * width
    dense = np.zeros((n, cells, listed), np.float32)
    values = logits.astype(np.float32).reshape(n, cells, kept)
    np.put_along_axis(dense, places.reshape(n, cells, kept), values, -1)
    return classes, dense


def _softmax_into(
    found: SparseLabels,
    part: slice,
    classes: NDArray[Any],
    logits: NDArray[np.float32],
    num_classes: int,
    temperature: np.float32,
) -> None:
    """Softmax over C classes of pooled logits (n, m, listed), the others having logit 0, sorted descending."""
    others = num_classes - logits.shape[-1]
    largest = logits.max(axis=-1)
    if others:
        largest = np.maximum(largest, np.float32(0))
    probs = np.exp((logits - largest[..., None]) / temperature)
    rest = np.exp(-largest / temperature) if others else np.zeros_like(largest)
    total = probs.sum(axis=-1) + np.float32(others) * rest
    probs /= total[..., None]
    order = np.argsort(-probs, axis=-1, kind="stable")
    ids = np.broadcast_to(classes[:, None], probs.shape)
    missing = np.isnan(total)
    listed = np.take_along_axis(ids, order, -1)
    listed[missing] = missing_id(classes.dtype)
    found.class_ids[part] = listed
    found.probs[part] = np.take_along_axis(probs, order, -1)
    found.rest[part] = np.where(missing, np.float32(np.nan), rest / total)


Float = NDArray[np.float32]


def axis_weights(start: Float, length: Float, cells: int) -> Float:
    """Weights (..., cells) of the cells along one axis for spans [start, start + length), in shares of the axis.

    They sum to one for spans inside the axis. NaN spans (missing crops) give NaN weights.
    """
    first = start * np.float32(cells) - np.float32(0.5)
    size = np.maximum(length * np.float32(cells), np.float32(1))
    missing = np.isnan(first) | np.isnan(size)
    points = np.where(missing, 1, np.ceil(size)).astype(np.int64)
    weights = np.zeros((*first.shape, cells), np.float32)
    step = size / points
    for nth in range(int(points.max(initial=0))):
        at = first + (np.float32(nth) + np.float32(0.5)) * step
        # a point more than a cell outside counts as zero, one that is just outside as on the edge
        used = (nth < points) & (at >= -1) & (at <= cells)
        inside = np.clip(np.where(used, at, 0), 0, cells - 1).astype(np.float32)
        low = inside.astype(np.int64)
        high = np.minimum(low + 1, cells - 1)
        share = inside - low
        _add(weights, low, np.where(used, 1 - share, 0))
        _add(weights, high, np.where(used, share, 0))
    weights /= points[..., None]
    weights[missing] = np.nan
    return weights


def _add(weights: Float, cell: NDArray[np.int64], value: Float) -> None:
    """weights[..., cell] += value; each row names one cell, so that none is named twice."""
    at = cell[..., None]
    np.put_along_axis(weights, at, np.take_along_axis(weights, at, -1) + value[..., None], -1)
