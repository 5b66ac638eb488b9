"""One HTML file that shows a store to someone who has only a browser; `shell` says what is in such a file.

Its explorer has a seeded sample of images and the suspects, each with its crops, their labels and a thumbnail.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.cropping.pictures import to_rgb
from labelstore.errors import UsageError, check_seed
from labelstore.images import ImageFile, digest, file_finder, open_picture
from labelstore.report.page_data import Wanted, sections
from labelstore.report.shell import made_by, render, save

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from labelstore.store import LabelSet, Store

SAMPLE = 200_000
"""Crops behind the figures per class."""
COUNTED = 40_000_000
"""Crops that counts are over, about, of a label set that has more."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page that was written."""

    path: str
    bytes: int
    thumbnail_bytes: int
    """How many of `bytes` are thumbnails."""
    label_set: str
    images_shown: int
    """Images of the explorer."""
    sampled_crops: int
    """Crops behind the figures per class."""
    counted_crops: int
    """Crops that Table 1 and the thresholds were counted over."""
    crops: int
    unavailable: dict[str, str]
    """Section -> why it is empty."""

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def write_page(
    store: Store,
    path: str | Path,
    *,
    label_set: str | None = None,
    mask: str | None = None,
    images: Path | None = None,
    sample: int = SAMPLE,
    counted: int | None = COUNTED,
    seed: int = 0,
    map_blocks: MapBlocks = map_in_threads,
) -> Page:
    """Write the report of a store to `path`; the first label set with labels is looked into if none is named.

    `images` is what the store was made from, for thumbnails. Counts are over all crops, or of a label set with
    more than
    `counted` over as many crops of every image as make up about that number (None counts all); figures per class and
    plots are from `sample` crops. Both are chosen by `seed`, and the page says so. UsageError for names that do
    not exist, StorageError where the disk refuses.
    """
    path = Path(path)
    if sample < 1:
        raise UsageError(f"`sample={sample}`: give the number of crops to look at, at least 1")
    check_seed(seed)
    if counted is not None and counted < 1:
        raise UsageError(f"counted={counted}: give the number of crops to count, at least 1")
    find = None if images is None else file_finder(images)
    labels = _chosen(store, label_set, mask)
    wanted = Wanted(
        labels=labels, mask=mask, sample=sample, counted=counted, seed=seed, map_blocks=map_blocks
    )
    data = sections(wanted)
    suspects = [row["image"] for row in data["noise"]["images"]] if data["noise"] else []
    shown = explorer(labels, seed=seed, images=find, also=suspects)
    data |= {
        "explorer": shown,
        **made_by(),
        "seed": seed,
    }
    text = render(data, Path(__file__).with_name("page.js"))
    save(text, path)
    crops = int(labels.present.sum()) * labels.num_crops
    return Page(
        path=str(path),
        bytes=len(text.encode()),
        thumbnail_bytes=sum(len(image["picture"] or "") for image in shown["images"]),
        label_set=labels.name,
        images_shown=len(shown["images"]),
        sampled_crops=data["sample"]["crops"] if data["sample"] else 0,
        counted_crops=data["counted"]["crops"] if data["counted"] else crops,
        crops=crops,
        unavailable=data["unavailable"],
    )


def _chosen(store: Store, label_set: str | None, mask: str | None) -> LabelSet:
    if mask is not None:
        row = store.mask(mask).row
        if label_set is None:
            own = [
                entry.name
                for entry in store.catalogue.label_sets.all()
                if (entry.teacher, entry.plan) == (row.teacher, row.plan)
            ]
            label_set = row.label_set if row.label_set in own else next(iter(own), None)
        else:
            named = store.label_set_row(label_set)
            if (named.teacher, named.plan) != (row.teacher, row.plan):
                raise UsageError(
                    f"mask {mask} is of {row.teacher} on {row.plan}, label set {label_set} of {named.teacher} "
                    f"on {named.plan}: choose a mask of the same teacher and plan"
                )
    if label_set is None:
        with_labels = [name for name in store.label_sets if store.label_set(name).blocks]
        label_set = next(iter(with_labels or store.label_sets), None)
    return store.label_set(label_set)


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
