"""`labelstore info`: what a store holds, from its catalogue alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli.options import Json, Store
from cli.output import print_fields, print_json

if TYPE_CHECKING:
    import labelstore


def info(store: Store, json: Json = False) -> None:
    """Show what a store holds: images, crop plans, teachers, label sets, masks, progress."""
    import labelstore

    with labelstore.open(store, readonly=True) as opened:
        record = describe(opened)
    if json:
        print_json(record)
    else:
        _print(record)


def describe(store: labelstore.Store) -> dict[str, Any]:
    """Everything that `labelstore info --json` prints."""
    catalogue = store.catalogue
    written = catalogue.counts()
    plans = {row.name: row for row in catalogue.plans()}

    def progress(group: str) -> dict[str, Any]:
        _, layout = store.group_specs(group)
        shards, size = written.get(group, (0, 0))
        return {"shards": shards, "of": layout.num_blocks * layout.num_crop_shards, "bytes": size}

    return {
        "store": store.path,
        "uuid": store.uuid,
        "format_version": catalogue.format_version,
        "images": store.num_images,
        "bad_images": int(store.bad.sum()),
        "classes": len(store.class_names),
        "plans": [
            {
                "name": row.name,
                "num_crops": row.num_crops,
                "stored": row.stored,
                "images_per_shard": row.images_per_shard,
                "crops_per_shard": row.crops_per_shard,
                "crops_per_chunk": row.crops_per_chunk,
                "parameters": row.parameters,
                **(progress(f"crops/{row.name}") if row.stored else {}),
            }
            for row in plans.values()
        ],
        "teachers": [
            {
                "name": row.name,
                "source": row.source,
                "architecture": row.architecture,
                "digest": row.digest,
                "classes": row.num_classes,
                "input_size": row.input_size,
                "interpolation": row.interpolation,
                "top1": row.top1,
            }
            for row in catalogue.teachers()
        ],
        "label_sets": [
            {
                "name": row.name,
                "teacher": row.teacher,
                "plan": row.plan,
                "classes": row.num_classes,
                "codec": row.codec,
                "temperature": row.temperature,
                "uuid": row.uuid,
                **progress(f"labels/{row.name}"),
            }
            for row in catalogue.label_sets()
        ],
        "masks": [
            {
                "name": row.name,
                "teacher": row.teacher,
                "plan": row.plan,
                "label_set": row.label_set,
                "num_crops": row.num_crops,
                "rule": row.rule,
                **progress(f"masks/{row.name}"),
            }
            for row in catalogue.masks()
        ],
    }


def _print(record: dict[str, Any]) -> None:
    bad = f", {record['bad_images']:,} left out" if record["bad_images"] else ""
    print_fields(
        {
            "store": f"{record['store']} (format {record['format_version']})",
            "images": f"{record['images']:,} of {record['classes']:,} classes{bad}",
        }
        | {
            f"plan {plan['name']}": f"{plan['num_crops']} crops per image, "
            + (_progress(plan) if plan["stored"] else "boxes computed from the seed")
            for plan in record["plans"]
        }
        | {
            f"teacher {teacher['name']}": f"{teacher['source']}, {teacher['classes']:,} classes, "
            f"{teacher['input_size']} px"
            for teacher in record["teachers"]
        }
        | {
            f"label set {labels['name']}": f"{_codec(labels['codec'])} by {labels['teacher']} "
            f"on {labels['plan']}, {_progress(labels)}"
            for labels in record["label_sets"]
        }
        | {
            f"mask {mask['name']}": f"by {mask['teacher']} on {mask['plan']}, "
            f"{mask['num_crops']} crops per image, {_progress(mask)}"
            for mask in record["masks"]
        }
    )


def _codec(codec: dict[str, Any]) -> str:
    kept = f" K={codec['k']}" if "k" in codec else ""
    return f"{codec['name']}{kept} {codec.get('dtype', '')}".rstrip()


def _progress(part: dict[str, Any]) -> str:
    share = f"{100 * part['shards'] // part['of']} %" if part["of"] else "nothing to do"
    state = "complete" if part["shards"] == part["of"] else f"{share} done"
    return f"{part['bytes'] / 1e6:,.1f} MB, {state}"
