"""Codebooks of product quantisation (Jegou, Douze and Schmid 2011), learnt with faiss and kept as text.

A vector of D values is cut into Q parts of V values (the last one filled up with zeros); of each part the codebook
knows 255 typical ones, found by k-means on a sample. faiss is needed to learn a codebook, and for nothing else.

As text, which a codec's record keeps: the first 16 hex digits of the SHA-256 of the bytes, a colon, and the bytes in
base64: (Q, 255, V) little-endian float16 in C order.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field, MapTopK, TopK
from labelstore.codecs.raw_outputs import RawOutputs, check_range
from labelstore.errors import RejectedInput, UsageError

ENTRIES = 255
"""Of each part; the code 255 is left for missing crops."""
SAMPLE = 16_384
"""Vectors that k-means looks at, at most; below 39 for each entry it would only learn them by heart."""
ROUNDS = 20
_HALF = np.dtype("<f2")


def parts_of(num_values: int, part_width: int) -> int:
    """Q, parts of V values in a vector of D."""
    return -(-num_values // part_width)


def cut(vectors: NDArray[np.float32], part_width: int) -> NDArray[np.float32]:
    """Vectors (r, D) -> their parts (r, Q, V), the last one filled up with zeros."""
    rows, width = vectors.shape
    parts = parts_of(width, part_width)
    filled = np.zeros((rows, parts * part_width), np.float32)
    filled[:, :width] = vectors
    return filled.reshape(rows, parts, part_width)


def learn(sample: NDArray[np.float32], part_width: int, *, seed: int = 0) -> str:
    """The codebook, as text, of vectors (r, D) of which none is NaN; the same for the same vectors and machine.

    UsageError for a sample of nothing, and where faiss is missing.
    """
    if not len(sample):
        raise UsageError("no vectors to learn a codebook from: label some images first")
    if len(sample) > SAMPLE:
        rng = np.random.default_rng(seed)
        sample = sample[np.sort(rng.choice(len(sample), SAMPLE, replace=False))]
    parts = cut(sample, part_width)
    book = np.empty((parts.shape[1], ENTRIES, part_width), np.float32)
    for part in range(parts.shape[1]):
        book[part] = _typical(np.ascontiguousarray(parts[:, part]), seed + part)
    return to_text(book)


def _typical(values: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """(255, V) centres of values (r, V); the values themselves, some of them twice, where they are no more."""
    if len(values) <= ENTRIES:
        return np.resize(values, (ENTRIES, values.shape[1]))
    try:
        import faiss
    except ImportError:
        raise UsageError(
            "pq labels learn their codebook with faiss: pip install 'labelstore[pq]'"
        ) from None
    means = faiss.Kmeans(
        values.shape[1],
        ENTRIES,
        niter=ROUNDS,
        seed=seed & 0x7FFFFFFF,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE,
    )
    means.train(values)
    return np.asarray(means.centroids, np.float32).reshape(ENTRIES, values.shape[1])


def to_text(book: NDArray[np.float32]) -> str:
    """Codebook (Q, 255, V) -> text."""
    data = np.ascontiguousarray(book, _HALF).tobytes()
    return f"{_checksum(data)}:{base64.b64encode(data).decode()}"


@lru_cache(maxsize=8)
def from_text(text: str, part_width: int) -> NDArray[np.float32]:
    """Text -> codebook (Q, 255, V), read-only; RejectedInput where it is damaged or of another V."""
    digest, _, data = text.partition(":")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    row = ENTRIES * part_width * _HALF.itemsize
    if not raw or len(raw) % row or _checksum(raw) != digest:
        raise RejectedInput(
            f"the codebook {digest[:16]!r} of pq labels is damaged: restore the catalogue from a copy of the store"
        )
    book = np.frombuffer(raw, _HALF).reshape(-1, ENTRIES, part_width).astype(np.float32)
    if not np.isfinite(book).all():
        raise RejectedInput(f"the codebook {digest[:16]!r} of pq labels has values that are none")
    book.setflags(write=False)
    return book


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


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
