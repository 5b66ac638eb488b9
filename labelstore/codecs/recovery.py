"""Recovered labels at another temperature, and as dense distributions (FKD 3.3 "recover", Eq. 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import LabelCodec, SparseLabels
from labelstore.errors import UsageError


def check_temperature(temperature: float) -> float:
    """T, if it is a positive finite number; UsageError otherwise."""
    if not (np.isfinite(temperature) and temperature > 0):
        raise UsageError(
            f"temperature {temperature}: a positive number is needed; leave it out to keep the labels as stored"
        )
    return temperature


def relative_temperature(
    codec: LabelCodec, temperature: float | None, made_at: float = 1.0
) -> float:
    """T / T0, what a codec takes, for labels made at T0 `made_at`; 1 where no T is asked for.

    UsageError for a T that is no temperature, and for any but T0 of labels that cannot be brought to another.

    >>> from labelstore.codecs.marginal import MarginalSmoothing
    >>> relative_temperature(MarginalSmoothing(k=1), 20.0, made_at=4.0)
    5.0
    """
    if temperature is None or check_temperature(temperature) == made_at:
        return 1.0
    if codec.fixed_temperature is not None:
        raise UsageError(
            f"temperature {temperature:g} with {codec.name!r} labels made at {made_at:g}: {codec.fixed_temperature}; "
            "leave it out, or use labels made with ms or full"
        )
    return temperature / made_at


def powers(
    values: NDArray[np.float32], largest: NDArray[np.float32], temperature: float
) -> NDArray[Any]:
    """(values / largest)^(1/T): a new array, float32, or float64 where 1/T is above 1 and multiplies rounding errors.

    Relative to the largest of a label, so that a small T cannot underflow every class.
    """
    wide: NDArray[Any] = values.astype(np.float64 if temperature < 1 else np.float32)
    wide /= largest
    np.power(wide, wide.dtype.type(1 / temperature), out=wide)
    return wide


def temper(labels: SparseLabels, num_classes: int, temperature: float) -> SparseLabels:
    """Labels p made at T0, at temperature T: every p^(T0/T), scaled to sum to one; `temperature` is T / T0.

    With p = softmax(z / T0) of logits z, p^(T0/T) normalised is softmax(z / T), so nothing but the spread inside the
    tail is lost. The tail counts as C - K equal classes, which have the largest sum of powers that its mass can have
    where T > T0, and the smallest where T < T0: kept classes then come out too small, or too large.
    """
    if check_temperature(temperature) == 1:
        return labels
    # a kept class is never below a class that is not kept; a float16 that underflowed to 0 would be
    probs = np.maximum(labels.probs, labels.rest[..., None])
    tempered = powers(probs, probs[..., :1], temperature)
    rest = powers(labels.rest, probs[..., 0], temperature)
    total = tempered.sum(-1) + (num_classes - probs.shape[-1]) * rest
    tempered /= total[..., None]
    rest /= total
    return SparseLabels(
        class_ids=labels.class_ids,
        probs=tempered.astype(np.float32, copy=False),
        rest=rest.astype(np.float32, copy=False),
    )
