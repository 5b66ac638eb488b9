"""The merged store's catalogue: images in their new rows with what is known of them, and everything kept by name.

All of it is there before the store has its name, so that a store that exists lacks nothing but shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import LabelSetRow
from labelstore.errors import ConflictError
from labelstore.images import ImageFolder
from labelstore.sharing.matching import MERGED_FROM, Matched, without_form
from labelstore.sharing.union import Union, groups_of_images
from labelstore.store import Store, create
from labelstore.store.layout import label_layout

FACTS_AT_ONCE = 20_000
"""Images of one batch of statements."""


def register(
    out: Path,
    matched: Matched,
    union: Union,
    chosen: Mapping[str, NDArray[np.int16]],
    backend: str,
) -> None:
    """A new store with all images, facts and names, and no labels."""
    first, *later = groups_of_images(union, chosen)
    sizes, mtimes = union.column("size"), union.column("mtime_ns")
    plan = matched.plans[0]

    def fill(store: Store) -> None:
        rows = np.empty(len(union.keys), np.int64)
        rows[first] = np.arange(len(first))
        for images in later:
            rows[images] = store.catalogue.images.append(
                [union.keys[at] for at in images],
                union.class_ids[images],
                sizes[images],
                mtimes[images],
                multiple=plan.images_per_shard,
            )
        store.refresh()
        _record_facts(store, union, rows)
        for row in matched.plans[1:]:
            store.catalogue.plans.add(row)
        _add(store, matched)

    create(
        out,
        images=ImageFolder(
            root=out,
            classes=matched.classes,
            keys=tuple(union.keys[at] for at in first),
            class_ids=union.class_ids[first],
            sizes=sizes[first],
            mtimes_ns=mtimes[first],
        ),
        plan=plan,
        backend=backend,
        fill=fill,
    ).close()


def add_records(target: Store, matched: Matched, union: Union) -> None:
    """Add what the stores have got since the merged store was made: label sets, masks, facts of images, forms of class
    ids."""
    _add(target, matched)
    rows = np.empty(len(union.keys), np.int64)
    keys = target.image_columns["key"]
    for at in np.flatnonzero(~target.free).tolist():
        rows[union.place[keys[at]]] = at
    _record_facts(target, union, rows)
    for row in matched.label_sets:
        if row.is_settled and not target.label_set_row(row.name).is_settled:
            target.settle_codec(row.name, row.codec)
    target.write_metadata()
    target.refresh()


def check_target(there: Store, matched: Matched, union: Union) -> None:
    """ConflictError where a store that is there is not one of these stores' merging."""
    uuids = [store.uuid for store in union.stores]
    label_sets = {row.name: row for row in there.catalogue.label_sets.all()}
    begun = [row for row in label_sets.values() if row.facts.get(MERGED_FROM) is not None]
    if not any(list(row.facts[MERGED_FROM]) == uuids for row in begun):
        what = "of other stores, or of these in another order" if begun else "by merging"
        raise ConflictError(
            f"{there.path} exists already and was not made {what}: give another path, or remove it first"
        )
    columns = there.image_columns
    rows = np.flatnonzero(~there.free)
    known = dict(zip(columns["key"][rows], columns["class_id"][rows].tolist(), strict=True))
    if known != dict(zip(union.keys, union.class_ids.tolist(), strict=True)):
        raise ConflictError(
            f"{there.path} holds {len(known)} images, the stores now {len(union.keys)}, and they are not the same: "
            "merge the stores into a new one"
        )
    plans = {row.name: row for row in there.catalogue.plans.all()}
    for plan in matched.plans:
        if plan.name in plans:
            height = plans[plan.name].images_per_shard
            if replace(plan, images_per_shard=height) != plans[plan.name]:
                raise _changed(there, f"crop plan {plan.name}")
    for row in matched.label_sets:
        if row.name in label_sets and _what(row) != _what(label_sets[row.name]):
            raise _changed(there, f"label set {row.name}")


def num_lacking(target: Store, label_set: str) -> int:
    """Images of the merged store without labels for some crop."""
    row = target.label_set_row(label_set)
    layout = label_layout(row, target.plan(row.plan), target.num_rows)
    committed = target.catalogue.ledger.committed(f"labels/{label_set}")
    lacks = np.ones(target.num_rows, bool)
    for block, shards in committed.items():
        if len(shards) == layout.num_crop_shards:
            rows = layout.rows(block)
            lacks[rows.start : rows.stop] = False
    return int(np.count_nonzero(lacks & ~target.bad))


def _add(store: Store, matched: Matched) -> None:
    catalogue = store.catalogue

    def add() -> None:
        tables: tuple[tuple[Any, Sequence[Any]], ...] = (
            (catalogue.plans, matched.plans),
            (catalogue.teachers, matched.teachers),
            (catalogue.label_sets, matched.label_sets),
        )
        for table, rows in tables:
            names = {row.name for row in table.all()}
            for row in rows:
                if row.name not in names:
                    table.add(row)
        for mask in matched.masks:
            catalogue.masks.add(mask)

    catalogue.together(add)


def _record_facts(store: Store, union: Union, rows: NDArray[np.int64]) -> None:
    columns = store.image_columns
    known = np.flatnonzero(union.column("has_digest") & ~columns["has_digest"][rows])
    bad = {at: reason for at, reason in union.bad.items() if not store.bad[rows[at]]}
    if not len(known) and not bad:
        return
    width, height, digest = (union.column(name) for name in ("width", "height", "digest"))
    with store.catalogue.transaction() as connection:
        for start in range(0, len(known), FACTS_AT_ONCE):
            some = known[start : start + FACTS_AT_ONCE]
            store.catalogue.images.record_facts(
                connection,
                zip(
                    rows[some].tolist(),
                    width[some].tolist(),
                    height[some].tolist(),
                    (each.tobytes() for each in digest[some]),
                    strict=True,
                ),
            )
        for at, reason in bad.items():
            store.catalogue.images.mark_bad(connection, int(rows[at]), reason)
    store.refresh()


def _what(row: LabelSetRow) -> tuple[object, ...]:
    uuids = list(row.facts.get(MERGED_FROM) or ())
    return row.plan, row.teacher, row.num_classes, without_form(row.codec), row.temperature, uuids


def _changed(there: Store, what: str) -> ConflictError:
    return ConflictError(
        f"{there.path} was merged when {what} was another: merge the stores into a new one"
    )
