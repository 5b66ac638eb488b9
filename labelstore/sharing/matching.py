"""What the stores of one merge must have in common, and the rows that the merged store gets for it.

Label sets are matched by name. Two of one name must be one teacher's labels of one crop plan in one codec, made under
the same circumstances; anything else is refused in one line, and nothing is written.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from labelstore.catalogue.records import LabelSetRow, MaskRow, PlanRow, TeacherRow
from labelstore.codecs import in_short
from labelstore.errors import ConflictError, UsageError, told_apart
from labelstore.store import Store
from labelstore.store.label_outputs import OUTPUT_NAMES, OUTPUT_OF_CLASS, Outputs

MERGED_FROM = "merged_from"
"""Key of a merged label set's facts: the uuids of the stores, in their order."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What the merged store registers beside its images."""

    classes: tuple[str, ...]
    plans: tuple[PlanRow, ...]
    teachers: tuple[TeacherRow, ...]
    label_sets: tuple[LabelSetRow, ...]
    masks: tuple[MaskRow, ...]
    notes: tuple[str, ...]


def match(stores: Sequence[Store], images_per_shard: int | None) -> Matched:
    """Return what the stores have in common. ConflictError names two stores and what differs between them."""
    _check_classes(stores)
    teachers, names = _teachers(stores)
    plans = _plans(stores, images_per_shard)
    label_sets = _label_sets(stores, names)
    masks, notes = _masks(stores, names)
    if not label_sets:
        raise UsageError(f"{stores[0].location} and the others hold no label set: nothing to merge")
    return Matched(
        classes=stores[0].class_names,
        plans=plans,
        teachers=teachers,
        label_sets=label_sets,
        masks=masks,
        notes=notes,
    )


def _refuse(what: str, first: Store, held: object, second: Store, other: object) -> ConflictError:
    one, another = told_apart(held, other)
    return ConflictError(
        f"{what} is {one} in {first.location} and {another} in {second.location}: these stores cannot become one"
    )


def _check_classes(stores: Sequence[Store]) -> None:
    first, *others = stores
    for store in others:
        names, held = store.class_names, first.class_names
        if names == held:
            continue
        at = next(
            (i for i, (a, b) in enumerate(zip(held, names, strict=False)) if a != b),
            min(len(held), len(names)),
        )
        raise ConflictError(
            f"{first.location} has {len(held)} classes and {store.location} {len(names)}, the first difference is "
            f"class {at}: labels belong to the list of classes, make every part with all of them"
        )


def _teachers(
    stores: Sequence[Store],
) -> tuple[tuple[TeacherRow, ...], list[dict[str, str]]]:
    """Teachers of the merged store, and per store its names for them -> the merged store's."""
    kept: dict[tuple[Any, ...], TeacherRow] = {}
    owner: dict[str, tuple[Store, TeacherRow]] = {}
    names: list[dict[str, str]] = []
    for store in stores:
        mine: dict[str, str] = {}
        for row in store.catalogue.teachers.all():
            identity = tuple(row.identity.values())
            held = kept.get(identity)
            if held is None:
                if row.name in owner:
                    other, known = owner[row.name]
                    raise _refuse(
                        f"teacher {row.name}", other, _described(known), store, _described(row)
                    )
                kept[identity] = held = row
                owner[row.name] = (store, row)
            elif held.top1 is None and row.top1 is not None:
                kept[identity] = replace(held, top1=row.top1, facts={**held.facts, **row.facts})
            elif OUTPUT_NAMES in row.facts and OUTPUT_NAMES not in held.facts:
                names_of_outputs = {OUTPUT_NAMES: row.facts[OUTPUT_NAMES]}
                kept[identity] = replace(held, facts={**held.facts, **names_of_outputs})
            mine[row.name] = held.name
        names.append(mine)
    return tuple(kept.values()), names


def _described(row: TeacherRow) -> str:
    return f"{row.source} with weights {row.digest[:12]} at {row.input_size} pixels"


def _plans(stores: Sequence[Store], images_per_shard: int | None) -> tuple[PlanRow, ...]:
    plans: dict[str, tuple[Store, PlanRow]] = {}
    height = images_per_shard or 0
    for store in stores:
        for row in store.catalogue.plans.all():
            if images_per_shard is None:
                height = max(height, row.images_per_shard)
            first, held = plans.setdefault(row.name, (store, row))
            for what, one, other in (
                ("seed, ranges or law", dict(held.parameters), dict(row.parameters)),
                ("number of crops per image", held.num_crops, row.num_crops),
                ("crops per shard", held.crops_per_shard, row.crops_per_shard),
                ("crops per chunk", held.crops_per_chunk, row.crops_per_chunk),
                ("storing of boxes", held.stored, row.stored),
            ):
                if one != other:
                    raise _refuse(f"crop plan {row.name}: its {what}", first, one, store, other)
    return tuple(replace(row, images_per_shard=height) for _, row in plans.values())


def _label_sets(
    stores: Sequence[Store], names: Sequence[dict[str, str]]
) -> tuple[LabelSetRow, ...]:
    label_sets: dict[str, tuple[Store, LabelSetRow]] = {}
    images: dict[str, set[object]] = {}
    for store, teacher_names in zip(stores, names, strict=True):
        for given in store.catalogue.label_sets.all():
            row = replace(given, teacher=teacher_names[given.teacher])
            first, held = label_sets.setdefault(row.name, (store, row))
            images.setdefault(row.name, set()).add(row.facts.get("images"))
            for what, one, other in (
                ("crop plan", held.plan, row.plan),
                ("teacher", held.teacher, row.teacher),
                ("number of classes", held.num_classes, row.num_classes),
                ("codec", without_form(held.codec), without_form(row.codec)),
                ("temperature", held.temperature, row.temperature),
                ("meaning of outputs", _outputs(held, first), _outputs(row, store)),
                *_circumstances(held.facts, row.facts),
            ):
                if one != other:
                    raise _refuse(f"label set {row.name}: its {what}", first, one, store, other)
            if not held.is_settled:
                # how class ids are kept is decided by the store that has labels
                label_sets[row.name] = (first, replace(held, codec=row.codec))
    uuids = [store.uuid for store in stores]
    merged = []
    for first, row in label_sets.values():
        # said now, as what proves it may not be in the merged store
        outputs = Outputs.of(row, len(first.class_names))
        facts = {**row.facts, **outputs.to_record(), MERGED_FROM: uuids}
        if len(images[row.name]) > 1:
            # no folder has them all: name none rather than one that lacks images
            facts = {key: value for key, value in facts.items() if not key.startswith("images")}
        merged.append(replace(row, uuid=uuid.uuid4().hex, facts=facts))
    return tuple(merged)


def _outputs(row: LabelSetRow, store: Store) -> dict[str, Any]:
    record = Outputs.of(row, len(store.class_names)).to_record()
    output_of_class = record[OUTPUT_OF_CLASS]
    # wherever the map came from
    return {**record, OUTPUT_OF_CLASS: output_of_class and output_of_class["outputs"]}


def without_form(record: Mapping[str, Any]) -> dict[str, Any]:
    """A codec's record without how class ids are kept, which each store decides on its first shard.

    Codes of two codebooks are no labels of one label set: of a codebook its checksum stays.
    """
    return {key: value for key, value in in_short(record).items() if key != "class_ids"}


def _circumstances(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> list[tuple[str, object, object]]:
    """Facts that make labels what they are; where the images lay and which versions were used do not."""

    def of(facts: Mapping[str, Any]) -> dict[str, object]:
        return {
            "autocast": facts.get("autocast", "none"),
            "device for crops": facts.get("crop_device", "cpu"),
            "device for decoding": facts.get("decode_device", "cpu"),
            "class map": (facts.get("class_map") or {}).get("outputs"),
            "origin": (facts.get("imported_from") or {}).get("format"),
            "stated circumstances": facts.get("stated"),
        }

    first, second = of(one), of(other)
    return [(what, first[what], second[what]) for what in first]


def _masks(
    stores: Sequence[Store], names: Sequence[dict[str, str]]
) -> tuple[tuple[MaskRow, ...], tuple[str, ...]]:
    """Masks that all stores have alike, and a line about each of the others."""
    masks_of_stores = [
        {row.name: replace(row, teacher=mine[row.teacher]) for row in store.catalogue.masks.all()}
        for store, mine in zip(stores, names, strict=True)
    ]
    kept, notes = [], []
    for name in sorted(set().union(*masks_of_stores)):
        without = [s for s, rows in zip(stores, masks_of_stores, strict=True) if name not in rows]
        rows = [rows[name] for rows in masks_of_stores if name in rows]
        if without:
            why = f"{without[0].location} does not have it"
        elif any(row != rows[0] for row in rows):
            why = "its thresholds or labels differ between the stores"
        else:
            kept.append(rows[0])
            continue
        notes.append(f"mask {name} is dropped: {why}; make it again with `labelstore.calibrate`")
    return tuple(kept), tuple(notes)
