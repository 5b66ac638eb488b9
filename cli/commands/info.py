"""`labelstore info`: the contents of a store, who is writing it and its cost, from the catalogue alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import drawn, duration, print_all, print_json, size
from cli.shared_options import Json, Store
from cli.wording import import_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import labelstore
    from labelstore.analysis.teacher_time import Cost, TeacherCost
    from labelstore.catalogue.records import LabelSetRow
    from labelstore.store.layout import Layout


def info(
    store: Store,
    cost: Annotated[
        bool,
        typer.Option(
            "--cost", help="Teacher time: in all, by device, per student, and when it has paid off."
        ),
    ] = False,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Show it again and again, until every label is made."),
    ] = None,
    json: Json = False,
) -> None:
    """Show what a store holds: images, crop plans, teachers, label sets, masks, progress."""
    import labelstore
    from labelstore.analysis.teacher_time import cost as teacher_time

    if watch is not None and not 0.5 <= watch <= 86_400:
        raise typer.BadParameter(f"{watch}: give 0.5 to 86400 seconds.", param_hint="'--watch'")
    while True:
        with labelstore.open(store, readonly=True) as opened:
            record = describe(opened)
            ledger = teacher_time(opened) if cost else None
        if json:
            print_json(record if ledger is None else {**record, "cost": asdict(ledger)})
        else:
            print_all(_fields(record))
            if ledger is not None:
                print_cost(ledger)
        incomplete = any(part["shards"] < part["of"] for part in record["label_sets"])
        if watch is None or not incomplete:
            return
        sys.stdout.flush()
        time.sleep(watch)


def describe(store: labelstore.Store) -> dict[str, Any]:
    """Everything that `labelstore info --json` prints, but for the cost."""
    from labelstore.analysis.work import work
    from labelstore.store.label_outputs import Outputs
    from labelstore.store.layout import label_layout

    catalogue = store.catalogue
    written = catalogue.ledger.counts()
    plans = {row.name: row for row in catalogue.plans.all()}

    def progress(group: str, layout: Layout | None = None) -> dict[str, Any]:
        layout = layout or store.group_specs(group)[1]
        shards, size = written.get(group, (0, 0))
        return {"shards": shards, "of": layout.num_blocks * layout.num_crop_shards, "bytes": size}

    return {
        "store": store.location,
        "uuid": store.uuid,
        "format_version": catalogue.format_version,
        "images": store.num_images,
        "bad_images": int((store.bad & ~store.free).sum()),
        "ignored_files": _ignored(catalogue.label_sets.all()),
        "classes": len(store.class_names),
        "plans": [
            _of(row, "name", "num_crops", "stored", "images_per_shard", "crops_per_shard")
            | _of(row, "crops_per_chunk", "parameters")
            | (progress(f"crops/{row.name}") if row.stored else {})
            for row in plans.values()
        ],
        "teachers": [
            _of(row, "name", "source", "architecture", "digest")
            | {"classes": row.num_classes}
            | _of(row, "input_size", "interpolation", "top1", "facts")
            for row in catalogue.teachers.all()
        ],
        "label_sets": [
            _of(row, "name", "teacher", "plan")
            | {"classes": row.num_classes}
            | _of(row, "codec", "temperature")
            | {"outputs": Outputs.of(row, len(store.class_names)).describe(row.num_classes)}
            | _of(row, "uuid", "facts")
            # its arrays are not decided before the first shard
            | progress(f"labels/{row.name}", label_layout(row, plans[row.plan], store.num_rows))
            | {"work": asdict(work(store, row.name))}
            for row in catalogue.label_sets.all()
        ],
        "masks": [
            _of(row, "name", "teacher", "plan", "label_set", "num_crops", "rule")
            | {"temperature": store.mask(row.name).temperature}
            | progress(f"masks/{row.name}")
            for row in catalogue.masks.all()
        ],
    }


def _of(row: object, *names: str) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _ignored(label_sets: Sequence[LabelSetRow]) -> dict[str, int]:
    """Reason -> files beside the images that are none, by the label set that found most."""
    found = [row.facts.get("ignored") for row in label_sets]
    # a store from elsewhere may say anything
    counted = [
        each
        for each in found
        if isinstance(each, Mapping) and all(type(n) is int and n >= 0 for n in each.values())
    ]
    most: Mapping[str, int] = max(counted, key=lambda each: sum(each.values()), default={})
    return dict(most)


def _fields(record: dict[str, Any]) -> dict[str, str]:
    from labelstore.images import ignored_words

    bad = f", {record['bad_images']:,} left out" if record["bad_images"] else ""
    ignored = ignored_words(record["ignored_files"])
    return (
        {
            "store": f"{record['store']} (format {record['format_version']})",
            "images": f"{record['images']:,} of {record['classes']:,} classes{bad}"
            + (f"; {ignored}" if ignored else ""),
        }
        | {
            f"plan {plan['name']}": f"{plan['num_crops']} crops per image, "
            + (_progress(plan) if plan["stored"] else "boxes computed from the seed")
            + _augmented(plan["parameters"])
            for plan in record["plans"]
        }
        | {
            f"teacher {teacher['name']}": f"{teacher['source']}, {teacher['classes']:,} classes, "
            f"{teacher['input_size']} px" + _top1(teacher)
            for teacher in record["teachers"]
        }
        | {
            f"label set {labels['name']}": f"{_codec(labels['codec'])} by {labels['teacher']} "
            f"on {labels['plan']}{_at(labels)}, {_progress(labels)}{_work(labels['work'])}{_outputs(labels)}"
            f"{_imported(labels['facts'])}"
            for labels in record["label_sets"]
        }
        | {
            f"mask {mask['name']}": f"by {mask['teacher']} on {mask['plan']}{_at(mask)}, "
            + _of_crops(mask, record["plans"])
            for mask in record["masks"]
        }
    )


def _at(row: dict[str, Any]) -> str:
    """The temperature of a label set, or of the labels that a mask was made from, where it is not 1."""
    return "" if row["temperature"] in (None, 1) else f", temperature {row['temperature']:g}"


def _outputs(labels: dict[str, Any]) -> str:
    """The kind of the outputs where they are not the classes, and the probability that a class map leaves out."""
    facts = labels["facts"]
    lost = (facts.get("class_map") or {}).get("lost_mass")
    if facts.get("outputs_are", "classes") != "classes":
        return f"; {labels['outputs']}"
    return f"; {100 * lost['mean']:.1f} % of the teacher's probability left out" if lost else ""


def _of_crops(mask: dict[str, Any], plans: list[dict[str, Any]]) -> str:
    """A mask's crops and progress, or that its plan has grown since."""
    num_crops = next(plan["num_crops"] for plan in plans if plan["name"] == mask["plan"])
    if mask["num_crops"] == num_crops:
        return f"{num_crops} crops per image, {_progress(mask)}"
    return f"{mask['num_crops']} of {num_crops} crops per image: `labelstore calibrate --update` extends it"


def _augmented(parameters: dict[str, Any]) -> str:
    """The augmentation and mixing of a plan's crops."""
    from labelstore.cropping.crop_augmentation import planned_augmentation
    from labelstore.cropping.crop_mixing import planned_mixing

    planned, mixing = planned_augmentation(parameters), planned_mixing(parameters)
    augmented = "" if planned is None else f", augmented: {planned.settings}"
    return augmented if mixing is None else f"{augmented}, mixed: {mixing.settings}"


def _codec(codec: dict[str, Any]) -> str:
    kept = f" K={codec['k']}" if "k" in codec else ""
    tail = f" tail_classes={codec['tail_classes']}" if "tail_classes" in codec else ""
    width = f" values_per_code={codec['values_per_code']}" if "values_per_code" in codec else ""
    return f"{codec['name']}{kept}{tail}{width} {codec.get('dtype', '')}".rstrip()


def _top1(teacher: dict[str, Any]) -> str:
    if teacher["top1"] is None:
        return ""
    images = (teacher["facts"].get("evaluation") or {}).get("num_images")
    sample = f" on {images:,} images" if images else ""
    return f", top-1 {100 * teacher['top1']:.2f} %{sample}"


def _imported(facts: dict[str, Any]) -> str:
    """Describe whose rows an imported label set has, and which were left out."""
    return "".join(f"; {line}" for line in import_facts(facts.get("found") or {}))


def _work(work: dict[str, Any]) -> str:
    """Crops, workers, rate and time left of a label set that is not complete."""
    if work["committed_crops"] >= work["total_crops"]:
        return ""
    text = f": {work['crops']:,} of {work['total_crops']:,} crops"
    count = len(work["workers"])
    text += f", {count} worker{'' if count == 1 else 's'}" if count else ", no worker"
    if work["crops_per_second"]:
        text += f", {work['crops_per_second']:,.0f} crops/s, {duration(work['seconds_left'])} left"
    return text


def _progress(part: dict[str, Any]) -> str:
    # of a label set in crops, which its blocks do not have equally many of
    work = part.get("work")
    done, of = (work["crops"], work["total_crops"]) if work else (part["shards"], part["of"])
    share = f"{100 * done // of} %" if of else "nothing to do"
    state = "complete" if part["shards"] == part["of"] else f"{share} done"
    return f"{size(part['bytes'])}, {state}"


def print_cost(cost: Cost) -> None:
    """Print what labels cost by label set and device, and what they cost per student so far."""
    rows = [
        (
            part.label_set,
            device.device or "not recorded",
            duration(device.seconds),
            f"{device.crops:,}",
            _rate(device.crops_per_second),
            _rate(device.images_per_second),
        )
        for part in cost.label_sets
        for device in part.devices
    ]
    columns = ("label set", "device", "time", "crops", "crops/s", "images/s")
    print_all("", drawn(None, columns, rows, left=2, is_plain=True), *map(_sentence, cost.teachers))


def _rate(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _sentence(teacher: TeacherCost) -> str:
    if not teacher.crops:
        return (
            f"teacher {teacher.teacher}: labelled no crop here, what its labels cost is not known"
        )
    spent = f"teacher {teacher.teacher}: {duration(teacher.seconds)} for {teacher.crops:,} crops"
    count = len(teacher.students)
    if teacher.seconds_per_student is None:
        students = "no student yet"
    else:
        students = f"{count} student{'' if count == 1 else 's'}, {duration(teacher.seconds_per_student)} each so far"
    ahead = f"ahead of an online teacher after {teacher.epochs_to_break_even:,.0f} student epochs"
    saved = teacher.seconds_saved
    if saved is None:
        state = f"{teacher.epochs_so_far:,.0f} so far"
    else:
        word = f"{duration(saved)} saved" if saved >= 0 else f"{duration(-saved)} to go"
        state = f"{teacher.epochs_so_far:,.0f} so far: {word}"
    return f"{spent}; {students}; {ahead}, {state}"
