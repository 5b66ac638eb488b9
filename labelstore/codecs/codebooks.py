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
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

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
    return f"{_digest(data)}:{base64.b64encode(data).decode()}"


@lru_cache(maxsize=8)
def from_text(text: str, part_width: int) -> NDArray[np.float32]:
    """Text -> codebook (Q, 255, V), read-only; RejectedInput where it is damaged or of another V."""
    digest, _, data = text.partition(":")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    row = ENTRIES * part_width * _HALF.itemsize
    if not raw or len(raw) % row or _digest(raw) != digest:
        raise RejectedInput(
            f"the codebook {digest[:16]!r} of pq labels is damaged: restore the catalogue from a copy of the store"
        )
    book = np.frombuffer(raw, _HALF).reshape(-1, ENTRIES, part_width).astype(np.float32)
    if not np.isfinite(book).all():
        raise RejectedInput(f"the codebook {digest[:16]!r} of pq labels has values that are none")
    book.setflags(write=False)
    return book


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
