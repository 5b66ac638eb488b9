"""A codebook learnt by the teacher itself, before its first label: from crops of images from all over the data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_sample import at_most
from labelstore.catalogue.records import PlanRow
from labelstore.codecs import ProductCodes
from labelstore.codecs.base import LabelCodec
from labelstore.errors import RejectedInput
from labelstore.labelling.crop_batches import ImageJob, OpenedImage
from labelstore.labelling.labelling import Labelling
from labelstore.store import Store

CROPS = 10_000
"""That a teacher labels for a codebook, about 39 for each entry, as faiss advises."""


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
