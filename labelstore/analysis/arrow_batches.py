"""Crops as Arrow record batches, one per slab of an image block, decoded when they are pulled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labelstore.analysis.walk import Columns, CropQuery, draw, read, walk
from labelstore.blocks.columns import COLUMNS
from labelstore.blocks.crop_slab import names_of
from labelstore.blocks.slabs import slabs
from labelstore.blocks.text_column import Text

if TYPE_CHECKING:
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
