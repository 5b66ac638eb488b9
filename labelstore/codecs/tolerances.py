"""How far the same teacher's labels of the same crop may be apart, made on two machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labelstore.codecs.base import LabelCodec

TOLERANCES = {"float32": 0.001, "float16": 0.002, "uint8": 0.02}
"""By dtype: twice the largest rounding step, and what another device's kernels add."""
OUTPUTS = {"float16": 0.01, "uint8": 0.1, "pq": 0.5}
"""Of outputs before softmax. Those of 16 to 32 lie 1/64 apart in float16: one step moves a probability by 0.004. With 8
bits they lie up to 1/8 apart, and where a difference of the last place chooses another code, values move together."""
AUTOCAST_TOLERANCE = 0.05
"""More where the teacher ran in 8 or 11 bits of mantissa."""


def tolerance_of(codec: LabelCodec, facts: Mapping[str, Any]) -> float:
    """Largest difference of a probability that is no other label; `facts` are the label set's.

    >>> from labelstore.codecs import MarginalSmoothing
    >>> tolerance_of(MarginalSmoothing(k=2), {})
    0.002
    """
    dtype = getattr(codec, "dtype", "float32")
    autocast = AUTOCAST_TOLERANCE if facts.get("autocast", "none") != "none" else 0.0
    if codec.takes != "probabilities":
        return OUTPUTS.get(getattr(codec, "dtype", codec.name), TOLERANCES["float32"]) + autocast
    return TOLERANCES[dtype] + autocast
