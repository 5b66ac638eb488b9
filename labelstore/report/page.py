"""One HTML file that shows a store to someone who has only a browser: no server, no network, nothing to install.

Data is JSON in a script element that no browser runs; the page's own code, allowed by its digest, writes every name as
text. So a class or an image may be called anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstore.arrays.durable import storage_errors
from labelstore.errors import UsageError
from labelstore.parallel import MapBlocks
from labelstore.report.explorer import check_images, explorer
from labelstore.report.page_data import Wanted, sections
from labelstore.store.threads import map_in_threads

if TYPE_CHECKING:
    from labelstore.store import LabelSet, Store

SAMPLE = 200_000
"""Crops behind the figures per class."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page that was written."""

    path: str
    bytes: int
    thumbnail_bytes: int
    """Of these."""
    label_set: str
    images_shown: int
    """Images of the explorer."""
    sampled_crops: int
    """Crops behind the figures per class."""
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
    seed: int = 0,
    map_blocks: MapBlocks = map_in_threads,
) -> Page:
    """Write the report of a store to `path`; the first label set with labels is looked into if none is named.

    `images` is the image folder, for thumbnails. Counts are over all crops; figures per class and plots are from
    `sample` of them, chosen by `seed`. UsageError for names that do not exist, StorageError where the disk refuses.
    """
    path = Path(path)
    if sample < 1:
        raise UsageError(f"--sample {sample}: give the number of crops to look at, at least 1")
    if images is not None:
        check_images(images)
    labels = _chosen(store, label_set, mask)
    wanted = Wanted(labels=labels, mask=mask, sample=sample, seed=seed, map_blocks=map_blocks)
    data = sections(wanted)
    suspects = [row["image"] for row in data["noise"]["images"]] if data["noise"] else []
    shown = explorer(labels, seed=seed, images=images, also=suspects)
    data |= {
        "explorer": shown,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "version": version("labelstore"),
        "seed": seed,
    }
    text = render(data)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    with storage_errors(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return Page(
        path=str(path),
        bytes=len(text.encode()),
        thumbnail_bytes=sum(len(image["picture"] or "") for image in shown["images"]),
        label_set=labels.name,
        images_shown=len(shown["images"]),
        sampled_crops=data["sample"]["crops"] if data["sample"] else 0,
        crops=int(labels.present.sum()) * labels.num_crops,
        unavailable=data["unavailable"],
    )


def render(data: dict[str, Any]) -> str:
    """The page with this data in it.

    >>> "<b>" in render({"name": "<b>"})
    False
    """
    parts = {name: _asset(f"page.{name}") for name in ("html", "css", "js")}
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digest(parts['js'])}",
            f"style-src {_digest(parts['css'])}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    values = {
        "POLICY": policy,
        "STYLE": parts["css"],
        # ASCII, and no "<": nothing in it can end the element or begin another
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "SCRIPT": parts["js"],
    }
    pieces = parts["html"].split("@@")
    # every second piece is a name; a value is never looked through for names
    return "".join(values[piece] if at % 2 else piece for at, piece in enumerate(pieces))


def _chosen(store: Store, label_set: str | None, mask: str | None) -> LabelSet:
    if mask is not None:
        row = store.mask(mask).row
        if label_set is None:
            own = [
                entry.name
                for entry in store.catalogue.label_sets()
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


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
