"""Labels of images that have none, in the form that a codec encodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelstore.codecs.base import LabelCodec, MapTopK, TopK
from labelstore.codecs.labelmap import LabelMap
from labelstore.codecs.topk import id_dtype, missing_id


def missing_labels(
    codec: LabelCodec, num_images: int, num_crops: int, num_classes: int
) -> TopK | MapTopK | NDArray[np.float32]:
    """What `codec.encode` takes for n images with m crops each that were all left out."""
    ids = id_dtype(num_classes)
    if isinstance(codec, LabelMap):
        (field, *_) = codec.fields(num_classes)
        shape: tuple[int, ...] = (num_images, *field.shape)
        return MapTopK(
            class_ids=np.full(shape, missing_id(ids), ids),
            logits=np.full(shape, np.nan, np.float32),
        )
    kept = codec.kept(num_classes)
    if kept is None:
        return np.full((num_images, num_crops, num_classes), np.nan, np.float32)
    shape = (num_images, num_crops, kept)
    return TopK(
        class_ids=np.full(shape, missing_id(ids), ids),
        probs=np.full(shape, np.nan, np.float32),
        tail=np.full(shape[:2], np.nan, np.float32),
    )
