"""A text column of many crops: small numbers, and the few names that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Text:
    """Names of crops: `names[codes]`, and nothing where a code is negative."""

    codes: NDArray[np.int32]
    """Any shape."""
    names: NDArray[Any]
    """(number of names,) object; names differ from each other."""

    def where(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether the name of each code is among those `chosen` (number of names,); False where there is none."""
        # the last entry answers for -1
        answers = np.concatenate([chosen, np.zeros(1, bool)])
        return answers[np.maximum(self.codes, -1)]

    def as_objects(self) -> NDArray[Any]:
        """The names in the shape of the codes, None where there is none."""
        names = np.empty(len(self.names) + 1, object)
        names[:-1] = self.names
        return names[np.maximum(self.codes, -1)]
