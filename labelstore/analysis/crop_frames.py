"""Crops as pandas DataFrames, one row per crop: the whole of what was asked for, or block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from labelstore.analysis.walk import Columns, CropQuery, draw, empty, join_values, walk
from labelstore.blocks.text_column import Text
from labelstore.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.store import LabelSet
    from labelstore.store.label_set import Images

MAX_ROWS = 100_000_000
"""Rows of one DataFrame: beyond it, ask for a sample, for chunks, or in SQL."""


def crops(
    labels: LabelSet,
    columns: Sequence[str] | None = None,
    *,
    where: str | None = None,
    images: Images | None = None,
    sample: float | None = None,
    seed: int = 0,
    mask: str | None = None,
) -> pd.DataFrame:
    """A DataFrame with one row per labelled crop, in the order of images and crops.

    `columns` are names of `labelstore.blocks.columns.COLUMNS` (a usual choice if None); only arrays that they and
    `where` need are read. `where` is a condition like "area < 0.1 and max_probability < 0.2". `images` are rows or
    keys. `sample` is a number of the crops that satisfy `where`, or, below 1, the share of all crops that is
    looked at; the same `seed` gives the same crops. `mask` names a mask for the column `region`. Texts are
    categories. UsageError for unknown columns, conditions, masks; what does not fit in memory comes in
    chunks from `crop_frames`.
    """
    query = CropQuery.of(labels, columns, where=where, images=images, mask=mask)
    if sample is not None:
        return crop_frame(draw(query, sample, seed=seed))
    if where is None and query.num_images * labels.num_crops > MAX_ROWS:
        raise UsageError(
            f"{query.num_images * labels.num_crops:,} crops in one DataFrame: give sample, where or images, "
            "or take them in chunks from labelstore.crop_frames"
        )
    parts = list(walk(query))
    if not parts:
        return crop_frame(empty(query))
    return crop_frame({name: join_values([part[name] for part in parts]) for name in query.columns})


def crop_frames(
    labels: LabelSet,
    columns: Sequence[str] | None = None,
    *,
    where: str | None = None,
    images: Images | None = None,
    mask: str | None = None,
) -> Iterator[pd.DataFrame]:
    """The same rows as `crops` gives, one DataFrame per image block: at ImageNet's size 204,800 crops each.

    Blocks with no such crop are left out. Memory is that of one block, however large the store is.
    """
    query = CropQuery.of(labels, columns, where=where, images=images, mask=mask)
    return (crop_frame(part) for part in walk(query) if _length(part))


def _length(part: Columns) -> int:
    values = next(iter(part.values()))
    return len(values.codes if isinstance(values, Text) else values)


def crop_frame(part: Columns) -> pd.DataFrame:
    """Columns of some crops as a DataFrame; texts are categories, but for keys."""
    import pandas as pd

    found: dict[str, Any] = {}
    for name, values in part.items():
        if not isinstance(values, Text):
            found[name] = values
        elif name == "key":
            # every image has its own: categories would be as long as the table
            found[name] = pd.Series(values.as_objects(), dtype="str")
        else:
            categories = pd.Index(values.names.tolist())
            found[name] = pd.Categorical.from_codes(values.codes, categories)
    return pd.DataFrame(found)
