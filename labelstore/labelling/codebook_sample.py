"""What a label set's codebook is learnt from: outputs of crops from all over another label set.

A folder's images come class by class, so that its first blocks would teach a codebook one class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_sample import at_most
from labelstore.codecs import ProductCodes
from labelstore.codecs.base import LabelCodec
from labelstore.codecs.product_codes import SAMPLE
from labelstore.store import LabelSet

BLOCKS = 64
"""Image blocks of a label set that a sample is of, at most."""


def learns(codec: LabelCodec) -> bool:
    """Whether a codec has to see outputs before it can encode any."""
    return isinstance(codec, ProductCodes) and not codec.is_trained


def learnt_from(codec: LabelCodec, source: LabelSet) -> LabelCodec:
    """The codec with what it learns from a label set of outputs; itself where it learns nothing."""
    if not isinstance(codec, ProductCodes) or codec.is_trained:
        return codec
    blocks = at_most(source.blocks, BLOCKS)
    rng = np.random.default_rng(0)
    found = [_some(source, block, -(-SAMPLE // max(len(blocks), 1)), rng) for block in blocks]
    return codec.trained(
        np.concatenate(found) if found else np.empty((0, source.num_classes), np.float32)
    )


def _some(
    source: LabelSet, block: int, wanted: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(r, D) outputs of random crops of one image block, from as few chunk columns as they are in."""
    found: list[NDArray[np.float32]] = []
    for column in rng.permutation(source.layout.num_columns).tolist():
        outputs = source.raw_outputs(block, range(column, column + 1))
        outputs = outputs.reshape(-1, outputs.shape[-1])
        outputs = outputs[~np.isnan(outputs).any(-1)]
        chosen = rng.permutation(len(outputs))[: wanted - sum(map(len, found))]
        found.append(outputs[chosen])
        if sum(map(len, found)) >= wanted:
            break
    return np.concatenate(found)
