"""What survives a codec, found out by encoding one label: no list of codec names to keep up to date."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import LabelCodec, TopK


def keeps_max_probability(codec: LabelCodec, num_classes: int) -> bool:
    """Whether a label's largest probability survives the codec; found by encoding one label.

    `hard` makes it 1 and `mr` scales it up: thresholds would mean something else.
    """
    asked = 0.6
    dense = np.full((1, 1, num_classes), (1 - asked) / max(num_classes - 1, 1), np.float32)
    dense[..., 0] = asked
    kept = codec.kept(num_classes)
    label: TopK | NDArray[np.float32] = dense
    if kept is not None:
        label = TopK(
            class_ids=np.arange(kept, dtype=np.uint32)[None, None],
            probs=dense[..., :kept],
            tail=dense[..., kept:].sum(axis=-1),
        )
    found = codec.recover(codec.encode(label, num_classes), num_classes).max()
    return bool(abs(found - asked) < 0.05)
