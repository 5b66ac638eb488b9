"""Classes of images: ids from what stands beside each image, and ImageNet's names for people.

Numbers are ids, names are sorted as folders would be. n01440764 is "tench, Tinca tinca" by the lists that timm ships;
timm is not imported, which would load torch: only its text files are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

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
    number_of: dict[str | int, int] = {}
    for at, value in enumerate(values):
        number_of.setdefault(value, at)
    numbers: dict[str | int, int] = {}
    for value, at in number_of.items():
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
    for value, at in number_of.items():
        name = str(value)
        if not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
            raise RejectedInput(
                f"{where(at)} has class {name[:40]!r}: a class is a number, or a name of 1 to {MAX_NAME} "
                "printable characters"
            )
    names = tuple(sorted({str(value) for value in number_of}))
    place = {name: at for at, name in enumerate(names)}
    return names, np.array([place[str(value)] for value in values], np.int64)


def _number(value: str | int) -> int | None:
    if isinstance(value, int):
        return int(value)
    # longer ones are numbers of something else, and int() of millions of digits would take minutes
    return int(value) if re.fullmatch(r"-?[0-9]{1,12}", value) else None


VARIANTS = {
    "imagenet-1k": "imagenet_synsets.txt",
    "imagenet-12k": "imagenet12k_synsets.txt",
    "imagenet-21k": "imagenet21k_goog_synsets.txt",
    "imagenet-21k-miil": "imagenet21k_miil_synsets.txt",
    "imagenet-22k": "imagenet22k_synsets.txt",
    "imagenet-22k-ms": "imagenet22k_ms_synsets.txt",
}
"""timm's name of a variant of ImageNet -> its file of WordNet ids, in the order of the outputs."""
_LEMMAS = "imagenet_synset_to_lemma.txt"


@cache
def wordnet_ids(variant: str) -> tuple[str, ...]:
    """The WordNet id of every output of a network trained on a variant of ImageNet; empty where timm lacks it."""
    return tuple(_lines(VARIANTS[variant]))


@cache
def variant_of(num_outputs: int) -> str | None:
    """The variant of ImageNet that has so many classes, or None."""
    sizes = (name for name in VARIANTS if len(wordnet_ids(name)) == num_outputs)
    return next(sizes, None) if num_outputs >= 1000 else None


def is_wordnet_id(name: str) -> bool:
    """Whether a class is called as ImageNet's folders are: n and eight digits."""
    return re.fullmatch(r"n\d{8}", name) is not None


def readable(name: str) -> str:
    """Translate a WordNet id; any other name, and an id that timm does not know, as it is.

    >>> readable("n01440764"), readable("cat")
    ('tench, Tinca tinca', 'cat')
    """
    return _lemmas().get(name, name) if is_wordnet_id(name) else name


@cache
def _lemmas() -> dict[str, str]:
    pairs = (line.split("\t", 1) for line in _lines(_LEMMAS))
    return {pair[0]: pair[1].strip('"') for pair in pairs if len(pair) == 2}


def _lines(file: str) -> list[str]:
    spec = find_spec("timm")
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        path = Path(folder) / "data" / "_info" / file
        if path.is_file():
            return path.read_text(encoding="utf-8").splitlines()
    return []
