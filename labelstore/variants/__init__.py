"""Variants: a cheaper label set from a richer one of the same teacher, without running the teacher.

`full` gives everything else, `ms` a smaller K, `mr`, `smoothing` and `hard`. What the codec of the source
did not keep cannot be made up: `hard` -> `ms`, `mr` -> `ms` and a larger K are refused. Written like any
label set: through leases and the ledger, by any number of processes, resumed where it was stopped.
"""

from labelstore.variants.choice import (
    check_derivable,
    check_name,
    codec_for,
    codec_words,
    variant_name,
)
from labelstore.variants.cost import VariantCost, variant_cost
from labelstore.variants.deriving import derive

__all__ = [
    "VariantCost",
    "check_derivable",
    "check_name",
    "codec_for",
    "codec_words",
    "derive",
    "variant_cost",
    "variant_name",
]
