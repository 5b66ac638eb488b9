"""Class ids from what stands beside each image: numbers are ids, names are sorted as folders would be."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from labelstore.errors import RejectedInput

MAX_CLASSES = 1 << 17
"""A class number beyond is refused: there is a class for every number below the largest."""
MAX_NAME = 200


def number_classes(
    values: Sequence[str | int], where: Callable[[int], str]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Class names (C,) and ids (N,) of one value per image; `where(i)` names the i-th for RejectedInput.

    Where all are whole numbers they are the ids, and class k is called "k"; otherwise they are names.

    >>> number_classes(["2", "0", "10"], str)[1].tolist(), number_classes(["b", "a", "b"], str)[1].tolist()
    ([2, 0, 10], [1, 0, 1])
    """
    found: dict[str | int, int] = {}
    for at, value in enumerate(values):
        found.setdefault(value, at)
    numbers: dict[str | int, int] = {}
    for value, at in found.items():
        number = _number(value)
        if number is None:
            break
        if not 0 <= number < MAX_CLASSES:
            raise RejectedInput(
                f"{where(at)} has class {number}: a number is 0 to {MAX_CLASSES - 1}, or give names"
            )
        numbers[value] = number
    else:
        ids = np.array([numbers[value] for value in values], np.int64)
        return tuple(map(str, range(int(ids.max()) + 1))), ids
    for value, at in found.items():
        name = str(value)
        if not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
            raise RejectedInput(
                f"{where(at)} has class {name[:40]!r}: a class is a number, or a name of 1 to {MAX_NAME} "
                "printable characters"
            )
    names = tuple(sorted({str(value) for value in found}))
    place = {name: at for at, name in enumerate(names)}
    return names, np.array([place[str(value)] for value in values], np.int64)


def _number(value: str | int) -> int | None:
    if isinstance(value, int):
        return int(value)
    # longer ones are numbers of something else, and int() of millions of digits would take minutes
    return int(value) if re.fullmatch(r"-?[0-9]{1,12}", value) else None
