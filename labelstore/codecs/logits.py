"""`logits`: what a projection head or a classifier gives out before softmax; the temperature is a run's (S2-BNN).

MoCo v2's head has D = 128 outputs, SwAV's prototypes 3,000; a classifier's C are kept so where a method chooses
T later (T = 20 in dataset distillation). Recovered is softmax(outputs / T), which sums to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field, MapTopK, SparseLabels, Takes, TopK
from labelstore.codecs.float_range import check_range
from labelstore.codecs.probabilities import check_dtype
from labelstore.codecs.records import codec_from_parameters
from labelstore.codecs.recovery import check_temperature
from labelstore.codecs.rows import row_sum
from labelstore.errors import UsageError

_DTYPES = {"float32": "<f4", "float16": "<f2"}


@dataclass(frozen=True, kw_only=True)
class Logits:
    """`logits`: all D outputs before softmax, float16 or float32, as they are.

    >>> codec = Logits()
    >>> outputs = np.array([[[2.0, 0.0, -1e4]]], "f4")
    >>> codec.recover(codec.encode(outputs, 3), 3, temperature=2.0).round(3).tolist()
    [[[0.7310000061988831, 0.26899999380111694, 0.0]]]
    """

    name: ClassVar[str] = "logits"
    takes: ClassVar[Takes] = "outputs"
    fixed_temperature: ClassVar[str | None] = None
    dtype: str = "float16"
    """float16 or float32."""

    def __post_init__(self) -> None:
        check_dtype(self.dtype, _DTYPES)

    def kept(self, num_classes: int) -> None:
        """None: all of them."""
        return

    def fields(self, num_classes: int) -> tuple[Field, ...]:
        """`logit` (D,) per crop."""
        return (
            Field(
                name="logit",
                dtype=_DTYPES[self.dtype],
                shape=(num_classes,),
                dimensions=("output",),
                fill=float("nan"),
            ),
        )

    def encode(
        self, labels: TopK | MapTopK | NDArray[np.float32], num_classes: int
    ) -> dict[str, NDArray[Any]]:
        """Outputs (n, m, D) before softmax -> arrays by field name; NaN rows are missing crops.

        RejectedInput for an output that the dtype cannot hold.
        """
        if not isinstance(labels, np.ndarray):
            raise UsageError("a top-K given to logits: they want all outputs before softmax")
        if labels.shape[-1] != num_classes:
            raise UsageError(
                f"labels of {labels.shape[-1]} outputs for D={num_classes}: the teacher and the store differ"
            )
        check_range(labels, self.dtype)
        return {"logit": labels.astype(_DTYPES[self.dtype])}

    def decode(self, arrays: Arrays, num_classes: int, temperature: float = 1.0) -> SparseLabels:
        """Refused with UsageError: nothing is left out, so there is no sparse form; use `recover`."""
        raise UsageError(
            "logits keep every output and have no sparse form: recover dense labels instead"
        )

    def recover(
        self, arrays: Arrays, num_classes: int, temperature: float = 1.0
    ) -> NDArray[np.float32]:
        """Arrays (n, m, D) -> softmax(outputs / T), (n, m, D), non-negative, each summing to one."""
        probs = arrays["logit"].astype(np.float32)
        probs -= probs.max(-1, keepdims=True)
        if check_temperature(temperature) != 1:
            with np.errstate(over="ignore"):  # minus infinity is a probability of zero
                probs /= np.float32(temperature)
        np.exp(probs, out=probs)
        probs /= row_sum(probs)[..., None]
        return probs

    def max_probability(self, arrays: Arrays, num_classes: int) -> NDArray[np.float32]:
        """Arrays (n, m, D) -> largest entry of every label at T = 1, (n, m), NaN where missing."""
        largest: NDArray[np.float32] = self.recover(arrays, num_classes).max(-1)
        return largest

    def max_probability_fields(self, num_classes: int) -> tuple[str, ...]:
        """Names of the arrays that `max_probability` reads."""
        return ("logit",)

    def to_record(self) -> dict[str, Any]:
        """Name and parameters as JSON values."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The codec that `to_record` described; UsageError for parameters that make no sense."""
        return codec_from_parameters(cls, record)
