"""Images of the page's explorer: a seeded sample and the suspects, each with its crops, their labels and a
thumbnail."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from labelstore.cropping.pictures import to_rgb
from labelstore.images import ImageFile, digest, open_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from labelstore.store import LabelSet

FindFile: TypeAlias = Callable[[str], ImageFile]
IMAGES = 200
CROPS = 40_000
"""Crops that the explorer shows at most: with more crops per image, fewer images."""
TOP = 5
EDGE = 416
"""Longer edge of a thumbnail, in pixels: the gallery's frame on a screen of two pixels per CSS pixel."""
LARGE_EDGE = 1024
"""The same of the explorer's frame, for a page of so FEW images that it stays small."""
FEW = 32
MAX_PIXELS = 64_000_000
"""Larger images get no thumbnail."""


def explorer(
    labels: LabelSet, *, seed: int = 0, images: FindFile | None = None, also: Iterable[int] = ()
) -> dict[str, Any]:
    """Sampled image rows and those in `also`, as JSON values; `images` finds an image by its key, for thumbnails.

    Boxes are (top, left, height, width) in pixels of the image, labels the first five classes in 1/10,000.
    """
    rows = sample_rows(labels, seed=seed)
    rows = np.unique(np.concatenate([rows, np.fromiter(also, np.int64)]))
    facts = labels.store.image_columns
    found, missing = [], 0
    edge = LARGE_EDGE if len(rows) <= FEW else EDGE
    for row in rows.tolist():
        size = (int(facts["width"][row]), int(facts["height"][row]))
        key = str(facts["key"][row])
        due = labels.store.image_digest(row)
        picture = None if images is None else thumbnail(images, key, size, due, edge=edge)
        missing += picture is None
        found.append(
            {
                "image": row,
                "key": key,
                "class": int(labels.ground_truth[row]),
                "truth": int(labels.true_output[row]) if labels.outputs_are_classes else -1,
                "width": size[0],
                "height": size[1],
                "picture": picture,
                **_crops(labels, row),
            }
        )
    return {
        "images": found,
        "names": _names(labels, found),
        "of": int(labels.present.sum()),
        "without_picture": missing if images is not None else None,
    }


def sample_rows(labels: LabelSet, *, seed: int) -> NDArray[np.int64]:
    """At most 200 labelled image rows, chosen by `seed`; fewer where images have many crops."""
    present = np.flatnonzero(labels.present)
    count = min(IMAGES, max(1, CROPS // labels.num_crops), len(present))
    chosen = np.random.default_rng([seed, 3]).permutation(present)[:count]
    return np.sort(chosen).astype(np.int64)


def thumbnail(
    find: FindFile, key: str, size: tuple[int, int], due: bytes | None = None, *, edge: int = EDGE
) -> str | None:
    """A JPEG of at most `edge` pixels a side as a data URI, EXIF orientation not applied.

    None where there is no such image of that size.
    Nor where its bytes have another digest than `due`: boxes and labels belong to what was labelled.
    """
    from PIL import Image

    parts = PurePosixPath(key)
    if parts.is_absolute() or ".." in parts.parts:
        return None
    try:
        with warnings.catch_warnings():
            # metadata that Pillow finds odd is no matter here
            warnings.simplefilter("ignore")
            data = find(key).read_bytes()
            if due is not None and digest(data) != due:
                return None
            with open_picture(data) as opened:
                if opened.size != size or size[0] * size[1] > MAX_PIXELS:
                    return None
                opened.draft("RGB", (2 * edge, 2 * edge))
                small = Image.fromarray(to_rgb(opened, key))
                small.thumbnail((edge, edge))
            held = io.BytesIO()
            small.save(held, "JPEG", quality=70)
    except Exception:  # noqa: BLE001
        # Pillow's parsers raise whatever they stumble over, and one picture less is no harm
        return None
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


def _crops(labels: LabelSet, row: int) -> dict[str, Any]:
    probs = labels.recover([row])[0]
    kept = labels.listed
    top = min(TOP, probs.shape[1], kept or TOP)
    ids = np.argsort(-probs, axis=1, kind="stable")[:, :top]
    values = np.take_along_axis(probs, ids, axis=1)
    return {
        "boxes": labels.boxes([row])[0].tolist(),
        "flips": labels.flips([row])[0].astype(int).tolist(),
        "ids": ids.tolist(),
        "probs": (10_000 * values.astype(np.float64)).round().astype(int).tolist(),
        # as float32: what thresholds are compared with
        "max": [float(f"{value:.9g}") for value in values[:, 0]],
    }


def _names(labels: LabelSet, found: list[dict[str, Any]]) -> dict[str, str]:
    """Names of the outputs that are shown."""
    used = {i for image in found for crop in image["ids"] for i in crop}
    return {str(i): labels.output_titles[i] for i in sorted(used)}
