"""Images that may be labelled wrongly: the teacher is sure, of most of their crops, that they show something
else, or one file has two classes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.blocks.crop_slab import CropSlab, names_of, slabs
from labelstore.calibration.criterion import check_calibratable, check_ground_truth
from labelstore.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from labelstore.store import LabelSet, Store

CONFIDENCE = 0.7
MIN_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Suspicious images, and the classes that are taken for each other."""

    label_set: str
    confidence: float
    images: pd.DataFrame
    """The worst first: image, key, class, suggested (the teacher's class), class_name and suggested_name (what these
    are, in words for people), share (of crops that confidently say another class), ground_truth_probability and
    max_probability (means over the crops), crop (the surest one)."""
    num_suspects: int
    """Images above `min_share`, listed or not."""
    num_images: int
    """Images looked at."""
    pairs: pd.DataFrame
    """class, suggested, class_name, suggested_name, images: how often, among all suspects; the most frequent
    first."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "label_set": self.label_set,
            "confidence": self.confidence,
            "num_suspects": self.num_suspects,
            "num_images": self.num_images,
            "images": self.images.to_dict("records"),
            "pairs": self.pairs.to_dict("records"),
        }


def label_noise(
    labels: LabelSet,
    *,
    confidence: float = CONFIDENCE,
    min_share: float = MIN_SHARE,
    limit: int = 100,
    map_blocks: MapBlocks = map_in_threads,
) -> Noise:
    """Images of which more than `min_share` of the crops get one wrong class with a probability above `confidence`.

    At most `limit` are listed, ordered by that share and by how little the ground truth gets; all are counted.
    UsageError where images have no ground truth, or the codec keeps no probabilities; RejectedInput where the
    outputs are no classes of the data set.
    """
    import pandas as pd

    if not 0 <= confidence < 1 or not 0 <= min_share < 1:
        raise UsageError(
            f"confidence {confidence}, share {min_share}: give numbers from 0 to below 1"
        )
    if limit < 1:
        raise UsageError(f"limit {limit}: list at least one image")
    check_calibratable(labels, "max_probability", calibrates=False)
    check_ground_truth(labels)
    job = partial(_suspects, labels, confidence, min_share)
    parts = list(map_blocks(job, labels.blocks))
    columns = {
        name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0, dtype)
        for name, dtype in _COLUMNS.items()
    }
    frame = pd.DataFrame(columns)
    pairs = (
        frame.groupby(["class_id", "suggested_id"], as_index=False)
        .size()
        .sort_values(["size", "class_id", "suggested_id"], ascending=[False, True, True])
    )
    worst = frame.sort_values(
        ["share", "ground_truth_probability", "image"], ascending=[False, True, True]
    ).head(limit)
    keys = labels.store.image_columns["key"]
    images = pd.DataFrame(
        {
            "image": worst["image"].to_numpy(),
            "key": keys[worst["image"].to_numpy(np.int64)],
            **_named(labels, worst),
            **{
                c: worst[c].to_numpy()
                for c in ("share", "ground_truth_probability", "max_probability", "crop")
            },
        }
    )
    return Noise(
        label_set=labels.name,
        confidence=confidence,
        images=images,
        num_suspects=len(frame),
        num_images=int(labels.present.sum()),
        pairs=pd.DataFrame(
            {
                **_named(labels, pairs),
                "images": pairs["size"].to_numpy(),
            }
        ),
    )


def _named(labels: LabelSet, rows: pd.DataFrame) -> dict[str, NDArray[Any]]:
    columns = (("class", "class", "class_id"), ("suggested", "top1", "suggested_id"))
    return {
        f"{column}{kind}": names_of(labels, f"{source}{kind}")[rows[number].to_numpy(np.int64)]
        for kind in ("", "_name")
        for column, source, number in columns
    }


_COLUMNS: dict[str, str] = {
    "image": "i8",
    "class_id": "i8",
    "suggested_id": "i8",
    "share": "f8",
    "ground_truth_probability": "f8",
    "max_probability": "f8",
    "crop": "i8",
}


def _suspects(
    labels: LabelSet, confidence: float, min_share: float, block: int
) -> dict[str, NDArray[Any]]:
    """One entry per suspicious image of a block."""
    wanted = ("top1_id", "max_probability", "ground_truth_probability")
    read = [CropSlab(labels, block, columns, wanted=wanted) for columns in slabs(labels)]
    top1, largest, truth_gets = (
        np.concatenate([np.asarray(slab[name]) for slab in read], axis=1) for name in wanted
    )
    rows = np.arange(read[0].rows.start, read[0].rows.stop)
    truth = labels.ground_truth[rows].astype(np.int64)
    wrong = (largest > np.float32(confidence)) & (top1 != labels.true_output[rows][:, None])
    wrong[~labels.present[rows]] = False
    # a first sieve: too few wrong crops altogether are too few for any one class
    places = np.flatnonzero(wrong.sum(axis=1) > min_share * wrong.shape[1])
    suspects: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for place in places.tolist():
        classes, counts = np.unique(top1[place][wrong[place]], return_counts=True)
        suggested = int(classes[counts.argmax()])
        share = float(counts.max() / wrong.shape[1])
        if share <= min_share:
            continue
        sure = np.where(wrong[place] & (top1[place] == suggested), largest[place], -1)
        entry = {
            "image": rows[place],
            "class_id": truth[place],
            "suggested_id": suggested,
            "share": share,
            "ground_truth_probability": float(truth_gets[place].mean(dtype=np.float64)),
            "max_probability": float(largest[place].mean(dtype=np.float64)),
            "crop": int(sure.argmax()),
        }
        for name, value in entry.items():
            suspects[name].append(value)
    return {name: np.array(values, _COLUMNS[name]) for name, values in suspects.items()}


def duplicates(store: Store) -> pd.DataFrame:
    """One row per image that shares its file's digest, or its name without folder and ending, with another.

    Columns: kind ("digest" or "name"), group (a number), image, key, class, classes (how many different ones the
    group has: above one, at least one label is wrong). Digests are known of images that were decoded; bytes that are
    equal are equal images, equal names only may be.
    """
    import pandas as pd

    facts = store.image_columns
    names = np.array([*store.class_names, None], object)[facts["class_id"]]
    pairs: list[tuple[str, int, int]] = []
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
                pairs += [(kind, number, image) for image in images]
                number += 1
    frame = pd.DataFrame(pairs, columns=["kind", "group", "image"])
    rows = frame["image"].to_numpy(np.int64)
    frame["key"] = facts["key"][rows]
    frame["class"] = names[rows]
    frame["classes"] = frame.groupby("group")["class"].transform("nunique").astype(int)
    return frame
