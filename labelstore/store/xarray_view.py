"""A store as an xarray DataTree: labels, boxes and masks as lazy arrays, class ids looked up in their tables.

Nothing is read before values are asked for; then only the chunk columns that hold them, checked against their digests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import id_dtype, missing_id
from labelstore.errors import UsageError
from labelstore.store.layout import BOX, FLIP, REGION, Layout

if TYPE_CHECKING:
    import xarray

    from labelstore.store.label_set import LabelSet
    from labelstore.store.store import Store

Read = Callable[[int, range], NDArray[Any]]
"""(image block, chunk columns) -> values (images of the block, crops, ...)."""


def to_xarray(store: Store) -> xarray.DataTree:
    """The store as a tree of lazy datasets over (image, crop).

    `/` has key, class, width and height of every image; `/crops/PLAN` box and flip; `/labels/NAME` class_id,
    probability (recovered, float32) and rest, or probability over all classes where the codec keeps them; `/masks/NAME`
    region. What is not labelled yet is NaN, 65,535 or 255, as in `FORMAT.md`. UsageError without xarray.
    """
    try:
        import xarray
    except ImportError:
        raise UsageError("to_xarray needs xarray: pip install 'labelstore[xarray]'") from None
    facts = store.images()
    coordinates = {"image": np.arange(store.num_rows)}
    tree = {
        "/": xarray.Dataset(
            {
                name: (
                    "image",
                    np.asarray(facts[name], object if name in ("key", "class") else None),
                )
                for name in ("key", "class", "width", "height")
            },
            coords=coordinates,
            attrs={"uuid": store.uuid},
        )
    }
    ready = [name for name in store.group_names() if name.startswith("labels/")]
    for group in ready:
        row = store.label_set_row(group.partition("/")[2])
        if row.is_settled:
            labels = store.label_set(row.name)
            tree[f"/{group}"] = _labels(labels)
            tree.setdefault(f"/crops/{labels.plan.name}", _crops(labels))
    for name in store.masks:
        tree[f"/masks/{name}"] = _mask(store, name)
    return xarray.DataTree.from_dict(tree)


def _labels(labels: LabelSet) -> xarray.Dataset:
    kept = labels.codec.kept(labels.num_classes)
    about = {"teacher": labels.row.teacher, "codec": labels.codec.name, "plan": labels.plan.name}
    blocks = frozenset(labels.blocks)
    if kept is None:
        dense = _Lazy(labels.layout, labels.dense, blocks, "f4", np.nan, (labels.num_classes,))
        return _dataset({"probability": (dense, ("class_id",))}, about)
    ids = id_dtype(labels.num_classes)
    missing = missing_id(ids)
    fields = {
        "class_id": (_Field(labels, "class_ids"), ids, missing, (kept,)),
        "probability": (_Field(labels, "probs"), np.dtype("f4"), np.nan, (kept,)),
        "rest": (_Field(labels, "rest"), np.dtype("f4"), np.nan, ()),
    }
    return _dataset(
        {
            name: (
                _Lazy(labels.layout, read, blocks, dtype, fill, shape),
                ("kept",) if shape else (),
            )
            for name, (read, dtype, fill, shape) in fields.items()
        },
        about,
    )


def _crops(labels: LabelSet) -> xarray.Dataset:
    blocks = frozenset(labels.blocks)
    box = _Lazy(
        labels.layout, lambda b, c: labels.crops(b, c)[0], blocks, BOX.dtype, BOX.fill, BOX.shape
    )
    flip = _Lazy(labels.layout, _flips_of(labels), blocks, FLIP.dtype, FLIP.fill, FLIP.shape)
    return _dataset(
        {"box": (box, ("edge",)), "flip": (flip, ())}, dict(labels.plan.parameters)
    ).assign_coords(edge=["top", "left", "height", "width"])


def _flips_of(labels: LabelSet) -> Read:
    def read(block: int, columns: range) -> NDArray[Any]:
        boxes, flips = labels.crops(block, columns)
        return np.where(boxes[..., 0] == BOX.fill, np.uint8(FLIP.fill), flips)

    return read


def _mask(store: Store, name: str) -> xarray.Dataset:
    mask = store.mask(name)
    layout = Layout.of(store.plan(mask.row.plan), store.num_rows)
    blocks = frozenset(mask.blocks)
    region = _Lazy(layout, mask.regions, blocks, REGION.dtype, REGION.fill, REGION.shape)
    return _dataset({"region": (region, ())}, {"teacher": mask.row.teacher})


class _Field:
    """One part of sparse labels."""

    def __init__(self, labels: LabelSet, name: str) -> None:
        self.labels, self.name = labels, name

    def __call__(self, block: int, columns: range) -> NDArray[Any]:
        values: NDArray[Any] = getattr(self.labels.sparse(block, columns), self.name)
        return values


class _Lazy:
    """One array over (image, crop, ...) that is read where it is indexed."""

    def __init__(
        self,
        layout: Layout,
        read: Read,
        blocks: frozenset[int],
        dtype: Any,  # noqa: ANN401 - whatever NumPy takes for one
        fill: float,
        row: tuple[int, ...],
    ) -> None:
        self.layout, self.read, self.blocks, self.fill = layout, read, blocks, fill
        self.dtype = np.dtype(dtype)
        self.shape = (layout.num_rows, layout.num_crops, *row)

    def __getitem__(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Values at an index per axis: numbers, slices or lists of numbers, each on its own axis."""
        rows, crops = (
            np.atleast_1d(np.arange(size)[part])
            for size, part in zip(self.shape, key[:2], strict=False)
        )
        found = np.full((len(rows), len(crops), *self.shape[2:]), self.fill, self.dtype)
        per, height = self.layout.crops_per_chunk, self.layout.images_per_shard
        if len(rows) and len(crops):
            columns = range(int(crops.min()) // per, int(crops.max()) // per + 1)
            for block in np.unique(rows // height).tolist():
                if block in self.blocks:
                    here = np.flatnonzero(rows // height == block)
                    values = self.read(block, columns)
                    found[here] = values[rows[here] - block * height][
                        :, crops - columns.start * per
                    ]
        # a single number drops its axis, and the axes of a row are indexed as they are
        for axis in range(len(self.shape) - 1, 1, -1):
            found = found[(slice(None),) * axis + (key[axis],)]
        whole = tuple(0 if isinstance(k, (int, np.integer)) else slice(None) for k in key[:2])
        return np.asarray(found[whole])


def _dataset(
    arrays: dict[str, tuple[_Lazy, tuple[str, ...]]], attributes: dict[str, Any]
) -> xarray.Dataset:
    import xarray
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Lazy(BackendArray):
        """What xarray indexes."""

        def __init__(self, array: _Lazy) -> None:
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:  # noqa: ANN401 - as xarray has it
            return indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.OUTER, self.array.__getitem__
            )

    variables = {}
    for name, (array, dimensions) in arrays.items():
        lazy = indexing.LazilyIndexedArray(Lazy(array))
        variables[name] = xarray.Variable(("image", "crop", *dimensions), lazy)
    return xarray.Dataset(variables, attrs=attributes)
