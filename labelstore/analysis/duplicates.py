"""Images that are in the data set more than once: equal bytes under several keys, or equal names."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.store import Store


def duplicates(store: Store) -> pd.DataFrame:
    """One row per image that shares its file's digest, or its name without folder and ending, with another.

    Columns: kind ("digest" or "name"), group (a number), image, key, class, classes (how many different ones the
    group has: above one, at least one label is wrong). Digests are known of images that were decoded; bytes that are
    equal are equal images, equal names only may be.
    """
    import pandas as pd

    facts = store.image_columns
    names = np.array([*store.class_names, None], object)[facts["class_id"]]
    found: list[tuple[str, int, int]] = []
    number = 0
    digests: dict[bytes, list[int]] = defaultdict(list)
    for image in np.flatnonzero(facts["has_digest"]).tolist():
        digests[facts["digest"][image].tobytes()].append(image)
    stems: dict[str, list[int]] = defaultdict(list)
    for image, key in enumerate(facts["key"].tolist()):
        if not key:
            continue  # a row that no image has
        stems[key.rpartition("/")[2].rpartition(".")[0]].append(image)
    for kind, groups in (("digest", digests.values()), ("name", stems.values())):
        for images in groups:
            if len(images) > 1:
                found += [(kind, number, image) for image in images]
                number += 1
    frame = pd.DataFrame(found, columns=["kind", "group", "image"])
    rows = frame["image"].to_numpy(np.int64)
    frame["key"] = facts["key"][rows]
    frame["class"] = names[rows]
    frame["classes"] = frame.groupby("group")["class"].transform("nunique").astype(int)
    return frame
