"""What the codecs of outputs before softmax share: a label is softmax(outputs / T), however the outputs are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field, MapTopK, SparseLabels, Takes, TopK
from labelstore.codecs.records import codec_from_parameters
from labelstore.codecs.recovery import check_temperature
from labelstore.codecs.rows import row_sum
from labelstore.errors import UsageError


class RawOutputs(ABC):
    """A codec that keeps all D outputs of a teacher: those of a classifier, a projection head, or an embedding."""

    name: ClassVar[str]
    takes: ClassVar[Takes] = "outputs"
    fixed_temperature: ClassVar[str | None] = None

    @abstractmethod
    def fields(self, num_classes: int) -> tuple[Field, ...]:
        """The arrays of a label set with this codec."""

    @abstractmethod
    def outputs(self, arrays: Arrays, num_classes: int) -> NDArray[np.float32]:
        """Arrays (n, m, ...) -> the teacher's outputs (n, m, D), a new array; missing crops are NaN."""

    def kept(self, num_classes: int) -> None:
        """None: all of them."""
        return

    def decode(self, arrays: Arrays, num_classes: int, temperature: float = 1.0) -> SparseLabels:
        """Refused with UsageError: nothing is left out, so there is no sparse form; use `recover`."""
        raise UsageError(
            f"{self.name} labels keep every output and have no sparse form: recover dense labels instead"
        )

    def recover(
        self, arrays: Arrays, num_classes: int, temperature: float = 1.0
    ) -> NDArray[np.float32]:
        """Arrays (n, m, ...) -> softmax(outputs / T), (n, m, D), non-negative, each summing to one."""
        probs = self.outputs(arrays, num_classes)
        with np.errstate(over="ignore"):  # minus infinity is a probability of zero
            probs -= probs.max(-1, keepdims=True)
            if check_temperature(temperature) != 1:
                probs /= np.float32(temperature)
        np.exp(probs, out=probs)
        probs /= row_sum(probs)[..., None]
        return probs

    def max_probability(self, arrays: Arrays, num_classes: int) -> NDArray[np.float32]:
        """Arrays (n, m, ...) -> largest entry of every label at T = 1, (n, m), NaN where missing."""
        largest: NDArray[np.float32] = self.recover(arrays, num_classes).max(-1)
        return largest

    def max_probability_fields(self, num_classes: int) -> tuple[str, ...]:
        """Names of the arrays that `max_probability` reads."""
        return tuple(field.name for field in self.fields(num_classes))

    def to_record(self) -> dict[str, Any]:
        """Name and parameters as JSON values."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The codec that `to_record` described; UsageError for parameters that make no sense."""
        return codec_from_parameters(cls, record)

    def _checked(
        self, labels: TopK | MapTopK | NDArray[np.float32], num_classes: int
    ) -> NDArray[np.float32]:
        """The outputs (n, m, D) that are to be encoded; UsageError for what is none."""
        if not isinstance(labels, np.ndarray):
            raise UsageError(f"a top-K given to {self.name}: they want all outputs before softmax")
        if labels.shape[-1] != num_classes:
            raise UsageError(
                f"labels of {labels.shape[-1]} outputs for D={num_classes}: the teacher and the store differ"
            )
        return labels
