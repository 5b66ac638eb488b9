"""`labelstore grow`: more crops of every image, or more images, labelled by the teacher of a label set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cli.field_options import option, with_options
from cli.options import DryRun, Json, LabelSet, Store
from cli.output import print_json, say
from cli.teacher_options import (
    Images,
    OptionalTeacher,
    PlanName,
    TeacherOptions,
    WorkOptions,
    check_teacher_model,
    is_first_rank,
    print_report,
    progress_of,
)

if TYPE_CHECKING:
    import labelstore
    from labelstore.commit.lease_keeper import Progress
    from labelstore.labelling.generate import GenerationReport


@with_options
def grow(
    store: Store,
    about_teacher: TeacherOptions,
    work: WorkOptions,
    teacher: OptionalTeacher = None,
    num_crops: Annotated[
        int | None,
        option(
            metavar="M",
            help="Target number of crops per image.",
            unset="as many as there are: new images join",
        ),
    ] = None,
    images: Images = None,
    label_set: LabelSet = None,
    plan_name: PlanName = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Add crops to every image of a store, or images to the store, and label them; nothing is rewritten.

    With --num-crops every image gets further crops. Without, images that were added to the folder join the
    store: their rows come after the others, and no row is renumbered; without --teacher they wait for their labels.

    All label sets of the crop plan are incomplete until they have grown too: run this once for each teacher,
    and `labelstore variants` again for what was derived. Masks cover the crops and images that they were made for
    until `labelstore calibrate --update`.
    """
    import labelstore
    from labelstore.errors import UsageError

    check_teacher_model(teacher, about_teacher.teacher_model)
    if num_crops is not None and teacher is None:
        raise UsageError("--num-crops needs --teacher SOURCE: new crops are labelled at once")
    if teacher is None:
        with labelstore.open(store, readonly=dry_run) as opened:
            _take_in(opened, store, images, skip_bad=work.skip_bad, dry_run=dry_run, json=json)
        return

    from labelstore.labelling.growing import plan_growth
    from labelstore.labelling.label_images import rehearse

    if num_crops is not None:
        with labelstore.open(store, readonly=True) as opened:
            plan_growth(opened, num_crops, plan=plan_name)  # before the teacher is loaded

    def label(path: Path, progress: Progress) -> GenerationReport:
        with labelstore.open(path) as opened:
            return labelstore.grow(
                opened,
                num_crops=num_crops,
                teacher=about_teacher.load(teacher, opened.catalogue.teachers.all()),
                images=images,
                label_set=label_set,
                plan=plan_name,
                **about_teacher.arguments(),
                **work.arguments(),
                progress=progress,
            )

    if dry_run:
        rehearse(store, label)
        with labelstore.open(store, readonly=True) as opened:
            if num_crops is None:
                _take_in(opened, store, images, skip_bad=work.skip_bad, dry_run=True, json=json)
            else:
                _report_growth(opened, store, num_crops, plan_name, json=json)
        return
    with progress_of("labels", "crops") as progress:
        report = label(store, progress)
    with labelstore.open(store, readonly=True) as opened:
        plan = opened.plan(opened.label_set_row(report.label_set).plan)
        behind = _left_behind(opened, plan.name)
    print_report(report, store, json=json, more={"num_crops_per_image": plan.num_crops, **behind})
    if is_first_rank() and not json:
        _say_what_is_left(behind, store)


def _take_in(
    opened: labelstore.Store,
    store: Path,
    images: Path | None,
    *,
    skip_bad: bool,
    dry_run: bool,
    json: bool,
) -> None:
    """Register new images, without labels."""
    from labelstore.labelling.growing import add_images, plan_new_images
    from labelstore.labelling.label_facts import recorded_images

    folder = recorded_images(opened) if images is None else images
    found = (plan_new_images if dry_run else add_images)(opened, folder, skip_bad=skip_bad)
    if json:
        print_json({"store": store, **asdict(found), "dry_run": dry_run})
        return
    if found.num_new:
        did = "would join" if dry_run else "joined"
        print(
            f"{found.num_new:,} images {did} {store}, from row {found.first_row} on: {found.num_images:,} in all"
        )
    else:
        print(f"{store} has all {found.num_images:,} images of {folder}: nothing to do")
    if not dry_run:
        left = {"incomplete_label_sets": found.unfinished, "masks_to_update": found.masks}
        _say_what_is_left(left, store)


def _report_growth(
    opened: labelstore.Store, store: Path, num_crops: int | None, plan: str | None, *, json: bool
) -> None:
    from labelstore.labelling.growing import plan_growth

    assert num_crops is not None
    growth = plan_growth(opened, num_crops, plan=plan)
    if json:
        print_json({"store": store, **asdict(growth)})
        return
    print(
        f"would grow plan {growth.plan} of {store} from {growth.num_crops} to "
        f"{growth.new_num_crops} crops of each of {opened.num_images:,} images; "
        f"label sets {', '.join(growth.label_sets) or 'none'}; "
        f"masks {', '.join(growth.masks) or 'none'}"
    )


def _say_what_is_left(behind: Mapping[str, Sequence[str]], store: Path) -> None:
    for name in behind["incomplete_label_sets"]:
        say(
            f"label set {name} lacks labels: labelstore grow {store} with its --teacher, or `labelstore variants` again"
        )
    for name in behind["masks_to_update"]:
        say(
            f"mask {name} does not cover all crops: labelstore calibrate {store} --update --name {name}"
        )


def _left_behind(store: labelstore.Store, plan: str) -> dict[str, Sequence[str]]:
    """What of the plan has not grown yet."""
    from labelstore.labelling.growing import uncovered, unfinished

    on_plan = {row.name for row in store.catalogue.label_sets.all() if row.plan == plan}
    masks_on_plan = {row.name for row in store.catalogue.masks.all() if row.plan == plan}
    return {
        "incomplete_label_sets": [name for name in unfinished(store) if name in on_plan],
        "masks_to_update": [name for name in uncovered(store) if name in masks_on_plan],
    }
