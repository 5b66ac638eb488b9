"""`pq`: outputs as product-quantised codes, one byte for V values, for embeddings and wide projection heads.

A crop's D outputs are brought to root mean square 1 and cut into parts of V values; a part's code is the nearest entry
of that part's codebook. With the codes goes one number, the scale at which the entries come closest to the outputs:

    outputs = scale * (book[0, code_0], book[1, code_1], ...), the first D values

The codebook belongs to the label set: it is learnt once, from a sample, and kept in the codec's record.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field, MapTopK, TopK
from labelstore.codecs.codebooks import ENTRIES, cut, from_text, learn, parts_of
from labelstore.codecs.float_range import check_range
from labelstore.codecs.raw_outputs import RawOutputs
from labelstore.errors import UsageError

MISSING = ENTRIES
DEFAULT_WIDTH = 20
"""1/40 of float16: with the scale of a crop below 1/32 from D = 427 on."""
WIDEST = 4096
ROWS_TOGETHER = 2048
"""Crops whose distances to all entries are held at once: 2 MB for each part."""


@dataclass(frozen=True, kw_only=True)
class ProductCodes(RawOutputs):
    """`pq`: all D outputs before softmax, one byte for every `values_per_code` of them.

    >>> codec = ProductCodes(values_per_code=2).trained(np.eye(4, dtype="f4"))
    >>> arrays = codec.encode(np.array([[[0, 3.0, 0, 0]]], "f4"), 4)
    >>> arrays["product_code"].shape, codec.outputs(arrays, 4).tolist()
    ((1, 1, 2), [[[0.0, 3.0, 0.0, 0.0]]])
    """

    name: ClassVar[str] = "pq"
    values_per_code: int = DEFAULT_WIDTH
    """V, outputs that one byte stands for."""
    codebook: str | None = field(default=None, repr=False)
    """Text of `codebooks`; None where none is learnt yet."""

    def __post_init__(self) -> None:
        width: object = self.values_per_code
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= WIDEST:
            raise UsageError(f"`values_per_code={width!r}`: give 1 to {WIDEST}")
        if self.codebook is not None:
            if not isinstance(self.codebook, str):
                raise UsageError("the codebook of pq labels is no text")
            from_text(self.codebook, width)

    @property
    def is_trained(self) -> bool:
        """Whether there is a codebook, without which nothing is encoded or recovered."""
        return self.codebook is not None

    def trained(self, sample: NDArray[np.float32]) -> Self:
        """The codec with a codebook of outputs (r, D); rows of NaN and of zeros are left out.

        UsageError where nothing is left, or faiss is missing.
        """
        scaled, scale = _unit(sample[~np.isnan(sample).any(-1)])
        return replace(self, codebook=learn(scaled[scale[:, 0] > 0], self.values_per_code))

    def fields(self, num_classes: int) -> tuple[Field, ...]:
        """`product_code` (Q,) and `product_scale` per crop."""
        parts = parts_of(num_classes, self.values_per_code)
        if self.is_trained and len(self._book()) != parts:
            raise UsageError(
                f"a codebook of {len(self._book()) * self.values_per_code} outputs for D={num_classes}: it was "
                "learnt for another teacher"
            )
        return (
            Field(
                name="product_code",
                dtype="u1",
                shape=(parts,),
                dimensions=("part",),
                fill=MISSING,
                shuffle="noshuffle",
                level=1,
            ),
            Field(name="product_scale", dtype="<f4", fill=float("nan")),
        )

    def encode(
        self, labels: TopK | MapTopK | NDArray[np.float32], num_classes: int
    ) -> dict[str, NDArray[Any]]:
        """Outputs (n, m, D) before softmax -> arrays by field name; NaN rows are missing crops.

        RejectedInput for an output that float32 cannot hold, UsageError without a codebook for D outputs.
        """
        outputs = self._checked(labels, num_classes)
        check_range(outputs, "float32")
        parts = self.fields(num_classes)[0].shape[0]
        flat = outputs.reshape(-1, num_classes)
        codes = np.full((len(flat), parts), MISSING, np.uint8)
        scales = np.full(len(flat), np.nan, np.float32)
        there = np.flatnonzero(~np.isnan(flat).any(-1))
        for start in range(0, len(there), ROWS_TOGETHER):
            rows = there[start : start + ROWS_TOGETHER]
            unit, scale = _unit(flat[rows])
            codes[rows] = self._nearest(cut(unit, self.values_per_code))
            found = self._entries(codes[rows], num_classes)
            # the scale with the least squared error, of outputs at root mean square 1
            own = (unit * found).sum(-1, dtype=np.float64)
            of = np.square(found, dtype=np.float64).sum(-1)
            best = np.divide(own, of, out=np.zeros_like(own), where=of > 0)
            scales[rows] = scale[:, 0] * np.maximum(best, 0)
        shape = outputs.shape[:2]
        return {
            "product_code": codes.reshape(*shape, parts),
            "product_scale": scales.reshape(shape),
        }

    def outputs(self, arrays: Arrays, num_classes: int) -> NDArray[np.float32]:
        """Arrays (n, m, ...) -> the teacher's outputs (n, m, D), a new array; missing crops are NaN."""
        found = self._entries(arrays["product_code"], num_classes)
        found *= arrays["product_scale"][..., None]
        return found

    def _entries(self, codes: NDArray[np.uint8], num_classes: int) -> NDArray[np.float32]:
        """Codes (..., Q) -> the codebook's entries for them, one after the other, (..., D)."""
        book = self._book()
        parts = np.arange(len(book))
        # a missing crop has the scale NaN, whatever its entries
        found = book[parts, np.minimum(codes, ENTRIES - 1)]
        return np.ascontiguousarray(found.reshape(*codes.shape[:-1], -1)[..., :num_classes])

    def _nearest(self, parts: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Parts (r, Q, V) -> codes (r, Q) of the nearest entries, the lower of two that are as near."""
        book = self._book()
        codes = np.empty(parts.shape[:2], np.uint8)
        for part, entries in enumerate(book):
            own = np.square(entries).sum(-1) - 2 * (parts[:, part] @ entries.T)
            codes[:, part] = own.argmin(-1)
        return codes

    def _book(self) -> NDArray[np.float32]:
        if self.codebook is None:
            raise UsageError("pq labels without a codebook: learn one from a sample of outputs")
        return from_text(self.codebook, self.values_per_code)


def _unit(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors (r, D) at root mean square 1, and what that was (r, 1); zeros stay zeros."""
    scale = np.sqrt(np.square(vectors, dtype=np.float64).mean(-1, keepdims=True))
    scale = scale.astype(np.float32)
    unit = np.divide(vectors, scale, out=np.zeros_like(vectors), where=scale > 0)
    return unit, scale
