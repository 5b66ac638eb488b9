"""`logits`: what a projection head or a classifier gives out before softmax; the temperature is a run's (S2-BNN).

MoCo v2's head has D = 128 outputs, SwAV's prototypes 3,000; a classifier's C are kept so where a method chooses
T later (T = 20 in dataset distillation), and an embedding (CLIP, DINO) has no softmax at all. Recovered is
softmax(outputs / T), which sums to one.

With 8 bits a crop has its own scale: output = smallest + step * code, with code 0 to 254.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, Field, MapTopK, TopK
from labelstore.codecs.float_range import check_range
from labelstore.codecs.probabilities import check_dtype
from labelstore.codecs.raw_outputs import RawOutputs

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
