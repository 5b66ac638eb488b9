"""Names of ImageNet's classes for people, from the lists that timm ships: n01440764 is "tench, Tinca tinca".

timm is not imported, which would load torch: only its text files are read.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

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
    """What a WordNet id means; any other name, and an id that timm does not know, as it is.

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
