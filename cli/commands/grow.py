"""`labelstore grow`: more crops of every image, labelled by the teacher of a label set."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DryRun, Json, LabelSet, Store, seconds
from cli.output import print_json, say
from cli.progress import Progress
from cli.teacher_options import (
    Amp,
    BatchSize,
    ClassMap,
    Device,
    Images,
    MaxTime,
    PlanName,
    SkipBad,
    TeacherModel,
    TeacherSource,
    Workers,
    device_of_this_process,
    print_report,
)

if TYPE_CHECKING:
    import labelstore


def grow(
    store: Store,
    images: Images,
    teacher: TeacherSource,
    num_crops: Annotated[
        int, typer.Option(metavar="M", help="Crops of each image that there shall be.")
    ],
    teacher_model: TeacherModel = None,
    class_map: ClassMap = None,
    label_set: LabelSet = None,
    plan_name: PlanName = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    amp: Amp = "none",
    workers: Workers = None,
    skip_bad: SkipBad = False,
    max_time: MaxTime = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Add crops to every image of a store and label them; nothing is rewritten.

    All label sets of the crop plan are incomplete until they have grown too: run this once for each teacher,
    and `labelstore variants` again for what was derived. Masks cover the crops that they were made for
    until `labelstore calibrate --update`.
    """
    import labelstore

    max_seconds = None if max_time is None else seconds(max_time, "--max-time")
    with labelstore.open(store, readonly=dry_run) as opened:
        if dry_run:
            from labelstore.generation import plan_growth

            growth = plan_growth(opened, num_crops, plan=plan_name)
            if json:
                print_json({"store": store, **asdict(growth)})
            else:
                print(
                    f"would grow plan {growth.plan} of {store} from {growth.num_crops} to "
                    f"{growth.new_num_crops} crops of each of {opened.num_images:,} images; "
                    f"label sets {', '.join(growth.label_sets) or 'none'}; "
                    f"masks {', '.join(growth.masks) or 'none'}"
                )
            return

        from labelstore.generation import load_teacher

        with Progress("labels", "crops") as progress:
            report = labelstore.grow(
                opened,
                num_crops=num_crops,
                teacher=load_teacher(teacher, architecture=teacher_model),
                images=images,
                label_set=label_set,
                plan=plan_name,
                class_map=class_map,
                batch_size=batch_size,
                device=device or device_of_this_process(),
                autocast=amp,
                workers=workers,
                skip_bad=skip_bad,
                max_seconds=max_seconds,
                progress=progress,
                note=say,
            )
        behind = _left_behind(opened, opened.label_set(report.label_set).plan.name)
    if json:
        print_json({"store": store, "num_crops_per_image": num_crops, **asdict(report), **behind})
        return
    print_report(report, store)
    for name in behind["incomplete_label_sets"]:
        say(
            f"label set {name} has fewer crops: run this with its teacher, or `labelstore variants` again"
        )
    for name in behind["masks_to_update"]:
        say(f"mask {name} covers fewer crops: labelstore calibrate {store} --update --name {name}")


def _left_behind(store: labelstore.Store, plan: str) -> dict[str, list[str]]:
    """What of the plan has not grown yet."""
    labels = [store.label_set(row.name) for row in store.catalogue.label_sets() if row.plan == plan]
    masks = [row for row in store.catalogue.masks() if row.plan == plan]
    crops = store.plan(plan).num_crops
    return {
        "incomplete_label_sets": [part.name for part in labels if not part.is_complete],
        "masks_to_update": [row.name for row in masks if row.num_crops < crops],
    }
