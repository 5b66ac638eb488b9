"""What survives a codec, found out by encoding one label: no list of codec names to keep up to date."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import Arrays, LabelCodec, TopK
from labelstore.codecs.product_codes import ProductCodes

_ASKED = 0.6


def keeps_max_probability(codec: LabelCodec, num_classes: int) -> bool:
    """Whether a label's largest probability survives the codec; found by encoding one label.

    `hard` makes it 1 and `mr` scales it up: thresholds would mean something else.
    """
    if codec.takes == "map":
        return True  # pooled from the logits of cells, which are kept as they are
    if isinstance(codec, ProductCodes):
        return False  # nothing bounds how far codes are from the outputs
    found = codec.recover(_one_label(codec, num_classes), num_classes).max()
    return bool(abs(found - _ASKED) < 0.05)


def _one_label(codec: LabelCodec, num_classes: int) -> Arrays:
    """Arrays of one crop whose first class has probability 0.6."""
    dense = np.full((1, 1, num_classes), (1 - _ASKED) / max(num_classes - 1, 1), np.float32)
    dense[..., 0] = _ASKED
    kept = codec.kept(num_classes)
    label: TopK | NDArray[np.float32] = np.log(dense) if codec.takes == "outputs" else dense
    if kept is not None:
        label = TopK(
            class_ids=np.arange(kept, dtype=np.uint32)[None, None],
            probs=dense[..., :kept],
            tail=dense[..., kept:].sum(axis=-1),
        )
    return codec.encode(label, num_classes)
