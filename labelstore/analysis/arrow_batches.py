"""Crops as Arrow record batches, decoded slab by slab when they are pulled, and as DataFrames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labelstore.analysis.walk import Columns, CropQuery, draw, empty, join_values, read, walk
from labelstore.blocks.columns import COLUMNS, Text
from labelstore.blocks.crop_slab import names_of, slabs
from labelstore.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from labelstore.store import LabelSet
    from labelstore.store.label_set import Images


class ArrowBatches:
    """The crops of a query as an Arrow stream that can be read any number of times (`__arrow_c_stream__`).

    An error while a batch is made is kept in `error`: code that pulls batches through Arrow's C
    interface only gets its text.
    """

    def __init__(self, query: CropQuery, names: Mapping[str, str] | None = None) -> None:
        import pyarrow as pa

        self.query = query
        self.names = {name: (names or {}).get(name, name) for name in query.columns}
        """Column -> its name in the stream."""
        self.error: BaseException | None = None
        self._dictionaries = {
            name: pa.array(names_of(query.labels, name), pa.string())
            for name in query.columns
            if COLUMNS[name].kind == "text" and name != "key"
        }
        self.schema = pa.schema([(self.names[c], arrow_type(c)) for c in query.columns])
        # here, and not in whichever thread pulls the first batch
        _ = query.labels.present, query.labels.ground_truth
        self._blocks = query.blocks

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """A new pass over the crops; `requested_schema` is not needed, the types are what they are."""
        return self.reader().__arrow_c_stream__(requested_schema)

    def reader(self) -> pa.RecordBatchReader:
        """A new pass over the crops as a pyarrow reader."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(self.schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for block in self._blocks:
                for columns in slabs(self.query.labels):
                    part = read(self.query, block, columns)
                    if self.query.where is not None:
                        part = part.take(part.holds)
                    if len(part.position):
                        yield self.batch(part.columns)
        except BaseException as error:
            self.error = error
            raise

    def batch(self, part: Columns) -> pa.RecordBatch:
        """The columns of some crops as one record batch."""
        import pyarrow as pa

        arrays = []
        for name, values in part.items():
            if not isinstance(values, Text):
                # NaN is a value in SQL, larger than any other; here it means unknown
                arrays.append(pa.array(values, from_pandas=values.dtype.kind == "f"))
                continue
            missing = values.codes < 0
            codes = pa.array(values.codes, mask=missing if missing.any() else None)
            if name == "key":
                arrays.append(pa.array(values.names, pa.string()).take(codes))
            else:
                arrays.append(pa.DictionaryArray.from_arrays(codes, self._dictionaries[name]))
        return pa.record_batch(arrays, schema=self.schema)


def crop_batches(
    labels: LabelSet,
    columns: Sequence[str] | None = None,
    *,
    where: str | None = None,
    images: Images | None = None,
    sample: float | None = None,
    seed: int = 0,
    mask: str | None = None,
) -> pa.RecordBatchReader:
    """The rows that `crops` gives with the same arguments, as an Arrow reader with one batch per image block."""
    import pyarrow as pa

    query = CropQuery.of(labels, columns, where=where, images=images, mask=mask)
    made = ArrowBatches(query)
    parts = walk(query) if sample is None else iter([draw(query, sample, seed=seed)])
    return pa.RecordBatchReader.from_batches(made.schema, (made.batch(part) for part in parts))


def arrow_type(column: str) -> Any:  # noqa: ANN401 - pyarrow's types have no stubs
    """The Arrow type of a column of crops."""
    import pyarrow as pa

    kind = COLUMNS[column].kind
    if kind == "text":
        return pa.string() if column == "key" else pa.dictionary(pa.int32(), pa.string())
    return pa.from_numpy_dtype(np.dtype({"int": "i4", "float": "f4", "bool": "?"}[kind]))


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

    columns_of_frame: dict[str, Any] = {}
    for name, values in part.items():
        if not isinstance(values, Text):
            columns_of_frame[name] = values
        elif name == "key":
            # every image has its own: categories would be as long as the table
            columns_of_frame[name] = pd.Series(values.as_objects(), dtype="str")
        else:
            categories = pd.Index(values.names.tolist())
            columns_of_frame[name] = pd.Categorical.from_codes(values.codes, categories)
    return pd.DataFrame(columns_of_frame)
