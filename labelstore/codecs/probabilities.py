"""The on-disk forms of kept probabilities, by the name that `--dtype` gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field
from labelstore.codecs.eight_bit import EightBitProbs
from labelstore.codecs.float_probs import FloatProbs
from labelstore.errors import UsageError


class ProbabilityForm(Protocol):
    """Both directions between K sorted probabilities with their tail and the arrays that hold them.

    `outcomes` is the number of classes that share the mass: C, or K where the tail was dropped.
    """

    def fields(self, k: int, outcomes: int) -> tuple[Field, ...]:
        """The arrays."""

    def encode(
        self, probs: NDArray[np.float32], tail: NDArray[np.float32], outcomes: int
    ) -> dict[str, NDArray[Any]]:
        """(n, m, K) sorted descending and (n, m) -> arrays by field name; NaN rows are missing crops."""

    def decode(
        self, arrays: Arrays, outcomes: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Arrays -> (n, m, K) and tail (n, m): non-negative, summing to one, NaN where missing."""

    def largest(self, arrays: Arrays, outcomes: int) -> NDArray[np.float32]:
        """Arrays -> the first and largest probability of every crop (n, m), without decoding more than it needs."""


FORMS: Mapping[str, ProbabilityForm] = {
    "float32": FloatProbs("<f4"),
    "float16": FloatProbs("<f2"),
    "uint8": EightBitProbs(),
}


def check_dtype(dtype: str, allowed: Mapping[str, object] = FORMS) -> str:
    """The dtype, if probabilities can be kept so; UsageError otherwise."""
    if dtype not in allowed:
        raise UsageError(f"dtype {dtype!r}: choose one of {', '.join(allowed)} with `dtype`")
    return dtype
