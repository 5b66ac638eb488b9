"""At which temperature label sets are compared that were made at different ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labelstore.store.label_set import LabelSet


def common_temperature(label_sets: Sequence[LabelSet]) -> float:
    """The T0 of a label set that cannot be brought to another temperature, otherwise that of the first."""
    fixed = [labels for labels in label_sets if labels.codec.fixed_temperature is not None]
    return (fixed or label_sets)[0].temperature
