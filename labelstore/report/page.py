"""One HTML file that shows a store to someone who has only a browser; `shell` says what is in such a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstore.blocks.shipping import MapBlocks
from labelstore.blocks.threads import map_in_threads
from labelstore.errors import UsageError, check_seed
from labelstore.images import file_finder
from labelstore.report.explorer import explorer
from labelstore.report.page_data import Wanted, sections
from labelstore.report.shell import made_by, render, save

if TYPE_CHECKING:
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
