"""`full`: every probability of the teacher, for when storage is no concern (FKD Table 2, "Full")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field, LabelCodec, MapTopK, TopK, check_dtype
from labelstore.codecs.probabilities import CLOSE, keep_sides, row_sum
from labelstore.codecs.recovery import check_temperature, powers
from labelstore.errors import UsageError

UNDERFLOW = np.float32(2**-26)
"""What stands for a probability that float16 made zero where a temperature would bring it back: below its half step."""
_DTYPES = {"float32": "<f4", "float16": "<f2"}


@dataclass(frozen=True, kw_only=True)
class Full(LabelCodec):
    """`full`: all C probabilities as float32 or float16, scaled to sum to one when recovered."""

    name: ClassVar[str] = "full"
    dtype: str = "float16"
    """float32 or float16."""

    def __post_init__(self) -> None:
        check_dtype(self.dtype, _DTYPES)

    def fields(self, num_classes: int) -> tuple[Field, ...]:
        """`probability` (C,) per crop."""
        return (
            Field(
                name="probability",
                dtype=_DTYPES[self.dtype],
                shape=(num_classes,),
                dimensions=("class",),
                fill=float("nan"),
                shuffle="bitshuffle",
            ),
        )

    def encode(
        self, labels: TopK | MapTopK | NDArray[np.float32], num_classes: int
    ) -> dict[str, NDArray[Any]]:
        """Dense labels (n, m, C) -> arrays by field name; NaN rows are missing crops."""
        if not isinstance(labels, np.ndarray):
            raise UsageError("a top-K given to full labels: they want all C probabilities")
        if labels.shape[-1] != num_classes:
            raise UsageError(
                f"labels of {labels.shape[-1]} classes for C={num_classes}: the teacher and the store differ"
            )
        stored = labels.astype(_DTYPES[self.dtype], order="C")
        if self.dtype == "float16":
            flat = stored.reshape(-1, num_classes)

            def largest(rows: NDArray[np.intp]) -> NDArray[np.float32]:
                return self.max_probability({"probability": flat[rows]}, num_classes)

            keep_sides(flat, labels.max(-1).reshape(-1), largest)
        return {"probability": stored}

    def recover(
        self, arrays: Arrays, num_classes: int, temperature: float = 1.0
    ) -> NDArray[np.float32]:
        """Arrays (n, m, C) -> dense labels (n, m, C) at `temperature` T / T0, non-negative, each summing to one."""
        probs: NDArray[Any] = arrays["probability"].astype(np.float32)
        if check_temperature(temperature) != 1:
            # float16 made it zero, the teacher did not
            np.maximum(probs, UNDERFLOW if self.dtype == "float16" else 0, out=probs)
            probs = powers(probs, probs.max(-1, keepdims=True), temperature)
        total = row_sum(probs)[..., None]
        # a sum that is one already stays: a probability that a threshold names comes back to the last bit
        np.divide(probs, total, out=probs, where=np.abs(total - 1) > CLOSE)
        return probs.astype(np.float32, copy=False)
