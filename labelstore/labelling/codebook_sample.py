"""What a label set's codebook is learnt from, before its first label: outputs of crops from all over the data set.

A folder's images come class by class, so that its first blocks would teach a codebook one class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_sample import at_most
from labelstore.catalogue.records import PlanRow
from labelstore.codecs import ProductCodes
from labelstore.codecs.base import LabelCodec
from labelstore.codecs.codebooks import SAMPLE
from labelstore.errors import RejectedInput
from labelstore.labelling.crop_batches import ImageJob, OpenedImage
from labelstore.labelling.labelling import Labelling
from labelstore.store import LabelSet, Store

BLOCKS = 64
"""Image blocks of a label set that a sample is of, at most."""
CROPS = 10_000
"""That a teacher labels for a codebook, about 39 for each entry, as faiss advises."""


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


def learnt_by(
    labelling: Labelling,
    store: Store,
    plan: PlanRow,
    gone: frozenset[int],
    note: Callable[[str], None],
) -> LabelCodec:
    """The codec with what it learns from the teacher's outputs of some crops; itself where it learns nothing."""
    codec = labelling.codec
    if not isinstance(codec, ProductCodes) or codec.is_trained:
        return codec
    num_crops = min(plan.num_crops, 16)
    there = [row for row in np.flatnonzero(~store.bad).tolist() if row not in gone]
    images = at_most(there, -(-CROPS // num_crops))
    keys = store.image_columns["key"]
    jobs = [ImageJob(image=i, key=keys[i], path=labelling.images.file(keys[i])) for i in images]
    note(f"learning the codebook from {len(images) * num_crops:,} crops of {len(images):,} images")
    found: list[NDArray[np.float32]] = []
    batches = labelling.label(store, plan, jobs, num_crops=num_crops, check=_is_any)
    with closing(batches):
        for batch in batches:
            for crops in batch:
                if crops.opened.bad is None:
                    found.append(_outputs(crops.labels))
                elif not labelling.options.skip_bad:
                    raise RejectedInput(
                        f"{crops.opened.bad}: fix the file, or leave it out with `skip_bad`"
                    )
    return codec.trained(
        np.concatenate(found) if found else np.empty((0, labelling.num_classes), np.float32)
    )


def _outputs(labels: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    return labels["logits"]


def _is_any(opened: OpenedImage) -> None:
    """Nothing is compared yet: the labels themselves are checked when they are made."""
