"""The README.md of a shared store: who made the labels, how, and how to check them.

Names in it come from elsewhere. In the text each of them is a code span, which no renderer reads as HTML, link or
markup; the header is written by a YAML library.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from labelstore.codecs import in_short
from labelstore.store import Store
from labelstore.store.frozen_store import Manifest
from labelstore.store.layout import label_layout

KNOWN_LICENCES = frozenset(
    (
        "mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-2.0", "cc-by-3.0",
        "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
        "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "odc-by",
        "odbl", "pddl", "unlicense",
    )
)  # fmt: skip
"""Identifiers that the Hub knows; any other licence is "other" there, with its name."""
MAX_SHOWN = 200


def code(text: object, *, most: int = MAX_SHOWN) -> str:
    """Text as a Markdown code span in which nothing has a meaning; at most so many characters of it.

    >>> print(code("a`b <script>"))
    ``a`b <script>``
    >>> print(code("one" + chr(10) + "# two"))
    `one\\n# two`
    """
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)
    )
    if len(shown) > most:
        shown = shown[:most] + "…"
    if not shown.strip():
        return "(empty)"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def card(store: Store, manifest: Manifest, *, repo: str, licence: str | None) -> str:
    """The card of a frozen store; `licence` is what the user states."""
    return f"---\n{_header(licence)}---\n\n" + "\n".join(_text(store, manifest, repo, licence))


def _header(licence: str | None) -> str:
    record: dict[str, Any] = {
        "tags": ["labelstore", "soft-labels", "knowledge-distillation"],
        "task_categories": ["image-classification"],
        # the files are arrays, no table that could be shown
        "viewer": False,
    }
    if licence is not None and licence.lower() in KNOWN_LICENCES:
        record["license"] = licence.lower()
    elif licence is not None:
        record["license"] = "other"
        name = re.sub(r"[^a-z0-9.-]+", "-", licence.lower()).strip("-.")
        record["license_name"] = name or "stated-in-the-card"
    return str(yaml.safe_dump(record, sort_keys=False))


def _text(store: Store, manifest: Manifest, repo: str, licence: str | None) -> Iterator[str]:
    total = sum(file.bytes for file in manifest.files.values())
    left_out = store.num_images - int((~store.bad).sum())
    yield "# Soft labels\n"
    yield (
        "Labels that a teacher gave to many random crops of every training image, made with labelstore. There are "
        "no images here: only their keys (paths relative to the image folder), class names, sizes and digests.\n"
    )
    yield "## Pull\n"
    command = f"labelstore pull {shlex.quote(repo)} labels --expect-root {manifest.root}"
    yield f"{code(command, most=5000)}\n"
    yield "## What it is\n"
    yield f"- images: {store.num_images:,}, in {len(store.class_names):,} classes, {left_out:,} left out as bad"
    yield f"- licence, as stated by who pushed it: {'not stated' if licence is None else code(licence)}"
    yield f"- size: {len(manifest.files):,} files, {_size(total)}"
    for plan in store.catalogue.plans.all():
        boxes = "stored" if plan.stored else "computed from the seed"
        parameters = ", ".join(f"{name} {value}" for name, value in plan.parameters.items())
        yield f"- crop plan {code(plan.name)}: {plan.num_crops:,} crops per image, boxes {boxes}; {code(parameters)}"
    for teacher in store.catalogue.teachers.all():
        top1 = "not measured" if teacher.top1 is None else f"{100 * teacher.top1:.2f} %"
        yield (
            f"- teacher {code(teacher.name)}: {code(_source(teacher.source))}, architecture "
            f"{code(teacher.architecture)}, {teacher.num_classes:,} outputs, {teacher.input_size} px, "
            f"{code(teacher.interpolation)}, top-1 {top1}; "
            f"weights SHA-256 {code(teacher.digest)}"
        )
    counts = store.catalogue.ledger.counts()
    for row in store.catalogue.label_sets.all():
        layout = label_layout(row, store.plan(row.plan), store.num_rows)
        due = layout.num_blocks * layout.num_crop_shards
        there = sum(len(s) for s in store.catalogue.ledger.committed(f"labels/{row.name}").values())
        codec = ", ".join(f"{name} {value}" for name, value in in_short(row.codec).items())
        whole = "complete" if there == due else f"{there:,} of {due:,} shards"
        size = counts.get(f"labels/{row.name}", (0, 0))[1]
        yield (
            f"- label set {code(row.name)}: teacher {code(row.teacher)}, plan {code(row.plan)}, codec {code(codec)}, "
            f"{_size(size)}, {whole}"
        )
        if row.facts.get("stated"):
            yield f"  - stated by a user, not measured: {code(row.facts['stated'])}"
    for mask in store.catalogue.masks.all():
        yield f"- mask {code(mask.name)}: of {code(mask.label_set)}, rule {code(dict(mask.rule))}"
    yield "\n## Checks\n"
    yield f"- store {code(manifest.uuid)}, format {manifest.format_version}"
    yield f"- root digest {code(manifest.root)}: the SHA-256 of the list of all files' SHA-256 in `labelstore.json`"
    yield "- every file was read and compared with that list before it was uploaded; `labelstore pull` does so again"
    yield "- `labelstore verify STORE --deep` decodes every label\n"


def _source(source: str) -> str:
    """timm:NAME and the like as they are; of a path only the last part, the rest is of no use elsewhere."""
    return source if re.match(r"[a-z]+:", source) else source.rstrip("/").rpartition("/")[2]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 10**6 else f"{num_bytes / 1e3:,.1f} kB"
