"""Whether a teacher's outputs fit the floating-point form that they are to be kept in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput


def check_range(outputs: NDArray[np.float32], dtype: str) -> None:
    """RejectedInput for an output (NaN is none) that `dtype`, float16 or float32, would make infinite."""
    largest = float(np.nanmax(np.abs(outputs), initial=0))
    most = float(np.finfo(dtype).max)
    if largest > most:
        raise RejectedInput(
            f"the teacher's outputs reach {largest:.6g} and {dtype} ends at {most:.6g}: "
            "store them with `dtype=float32`"
        )
