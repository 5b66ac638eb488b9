"""Outputs before softmax: what their codecs share, and `logits`, which keeps them all (S2-BNN).

MoCo v2's head has D = 128 outputs, SwAV's prototypes 3,000; a classifier's C are kept so where a method chooses
T later (T = 20 in dataset distillation), and an embedding (CLIP, DINO) has no softmax at all. Recovered is
softmax(outputs / T), which sums to one.

With 8 bits a crop has its own scale: output = smallest + step * code, with code 0 to 254.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field, LabelCodec, MapTopK, Takes, TopK, check_dtype
from labelstore.codecs.probabilities import row_sum
from labelstore.codecs.recovery import check_temperature
from labelstore.errors import RejectedInput, UsageError


class RawOutputs(LabelCodec):
    """A codec that keeps all D outputs of a teacher: those of a classifier, a projection head, or an embedding."""

    takes: ClassVar[Takes] = "outputs"

    @abstractmethod
    def outputs(self, arrays: Arrays, num_classes: int) -> NDArray[np.float32]:
        """Arrays (n, m, ...) -> the teacher's outputs (n, m, D), a new array; missing crops are NaN."""

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


def check_range(outputs: NDArray[np.float32], dtype: str) -> None:
    """RejectedInput for an output (NaN is none) that `dtype`, float16 or float32, would make infinite."""
    largest = float(np.nanmax(np.abs(outputs), initial=0))
    most = float(np.finfo(dtype).max)
    if largest > most:
        raise RejectedInput(
            f"the teacher's outputs reach {largest:.6g} and {dtype} ends at {most:.6g}: "
            "store them with `dtype=float32`"
        )


_DTYPES = {"float32": "<f4", "float16": "<f2", "uint8": "u1"}
LAST_CODE, MISSING = 254, 255


@dataclass(frozen=True, kw_only=True)
class Logits(RawOutputs):
    """`logits`: all D outputs before softmax, float16 or float32 as they are, or 8 bits each with a scale per crop.

    >>> codec = Logits()
    >>> outputs = np.array([[[2.0, 0.0, -1e4]]], "f4")
    >>> codec.recover(codec.encode(outputs, 3), 3, temperature=2.0).round(3).tolist()
    [[[0.7310000061988831, 0.26899999380111694, 0.0]]]
    >>> eight = Logits(dtype="uint8")
    >>> eight.outputs(eight.encode(np.array([[[-1.0, 0.0, 1.54]]], "f4"), 3), 3).round(3).tolist()
    [[[-1.0, 0.0, 1.5399999618530273]]]
    """

    name: ClassVar[str] = "logits"
    dtype: str = "float16"
    """float16, float32 or uint8."""

    def __post_init__(self) -> None:
        check_dtype(self.dtype, _DTYPES)

    def fields(self, num_classes: int) -> tuple[Field, ...]:
        """`logit` (D,) per crop; with 8 bits `logit_code` (D,) and `logit_range`, the smallest output and the step."""
        if self.dtype != "uint8":
            return (
                Field(
                    name="logit",
                    dtype=_DTYPES[self.dtype],
                    shape=(num_classes,),
                    dimensions=("output",),
                    fill=float("nan"),
                ),
            )
        return (
            Field(
                name="logit_code",
                dtype="u1",
                shape=(num_classes,),
                dimensions=("output",),
                fill=MISSING,
                shuffle="noshuffle",
                level=1,
            ),
            Field(
                name="logit_range",
                dtype="<f4",
                shape=(2,),
                dimensions=("range",),
                fill=float("nan"),
            ),
        )

    def encode(
        self, labels: TopK | MapTopK | NDArray[np.float32], num_classes: int
    ) -> dict[str, NDArray[Any]]:
        """Outputs (n, m, D) before softmax -> arrays by field name; NaN rows are missing crops.

        RejectedInput for an output that the dtype cannot hold.
        """
        outputs = self._checked(labels, num_classes)
        check_range(outputs, "float32" if self.dtype == "uint8" else self.dtype)
        if self.dtype != "uint8":
            return {"logit": outputs.astype(_DTYPES[self.dtype])}
        smallest = outputs.min(-1, keepdims=True)
        # float64: the largest less the smallest may be more than float32 holds
        step = (outputs.max(-1, keepdims=True).astype(np.float64) - smallest) / LAST_CODE
        step = step.astype(np.float32)
        missing = np.isnan(smallest)
        at = (outputs.astype(np.float64) - smallest) / np.where(step > 0, step, 1)
        codes = np.where(missing, MISSING, np.rint(at).clip(0, LAST_CODE)).astype(np.uint8)
        return {"logit_code": codes, "logit_range": np.concatenate([smallest, step], axis=-1)}

    def outputs(self, arrays: Arrays, num_classes: int) -> NDArray[np.float32]:
        """Arrays (n, m, ...) -> the teacher's outputs (n, m, D), a new array; missing crops are NaN."""
        if self.dtype != "uint8":
            return np.array(arrays["logit"], np.float32)
        scale = arrays["logit_range"].astype(np.float32, copy=False)
        found = arrays["logit_code"].astype(np.float32)
        found *= scale[..., 1:]
        found += scale[..., :1]
        return found
