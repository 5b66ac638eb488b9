"""Commands that label crops with a teacher: `labelstore create`, `add-teacher`, `grow`; `demo-images` to try them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from cli.field_options import numbers, option, with_options
from cli.new_store_options import CropOptions, LayoutOptions
from cli.output import answer, duration, print_all, print_json, say
from cli.progress import Progress, is_first_rank, say_once
from cli.shared_options import IMAGES, WORK, DryRun, Json, LabelSet, Store, open_to_write
from cli.teacher_options import (
    Images,
    LabelOptions,
    NewTeacherOptions,
    OptionalTeacher,
    PlanName,
    TeacherOptions,
    TeacherSource,
    WorkOptions,
    check_teacher_model,
)

if TYPE_CHECKING:
    import labelstore
    from labelstore.commit.lease_keeper import Progress as OnProgress
    from labelstore.images import ImageSource
    from labelstore.labelling.generate import GenerationReport

    Label: TypeAlias = Callable[[Path, OnProgress], GenerationReport]
    """Labels the crops of the store at a path."""


@with_options
def create(
    store: Store,
    images: Annotated[
        Path,
        option(
            metavar=IMAGES,
            help="Folder with one folder per class, .csv or .parquet list of path and class, tar shards "
            "(FILE.tar, s-{000..009}.tar), or a folder that `datasets` saved.",
        ),
    ],
    teacher: TeacherSource,
    crops: CropOptions,
    about_teacher: NewTeacherOptions,
    labels: LabelOptions,
    work: WorkOptions,
    layout: LayoutOptions,
    catalogue: Annotated[
        str | None,
        option(
            metavar="URL",
            help="Keep a new store's catalogue on a server: postgresql://HOST/DATABASE, no password in it.",
            unset="a file in the store",
            rich_help_panel=WORK,
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Label every crop of an image folder with a teacher; resumes or joins a store that exists.

    Any number of processes may run the same command, also under torchrun: each takes image blocks that no
    other has, and one of them makes the store.
    """
    # refused before torch is imported: what needs no teacher to be seen
    codec = labels.codec()
    if catalogue is not None:
        from labelstore.catalogue.server import check_server_url

        check_server_url(catalogue)

    from labelstore.arrays.durable import check_new_place
    from labelstore.images import open_images
    from labelstore.store.opening import check_new_store, exists

    is_new = not exists(store)
    if is_new:
        check_new_place(store)
        if dry_run:
            check_new_store(store)
    folder = open_images(images)

    from labelstore.labelling.label_images import label_images

    def label(path: Path, progress: OnProgress) -> GenerationReport:
        return label_images(
            path,
            images=folder,
            teacher=about_teacher.load(teacher),
            codec=codec,
            plan=crops.plan_options(layout),
            plan_of=crops.plan_of,
            backend=layout.backend,
            # a dry run makes its copy in a file
            catalogue=None if dry_run else catalogue,
            generation=about_teacher.generation(work, labels.name),
            check=about_teacher.check(),
            progress=progress,
            note=say_once,
        )

    if dry_run:
        _check_catalogue(store, catalogue, is_new=is_new)
        _report_plan(store, folder, crops, label, json=json)
    else:
        _print_report(_labelled(store, label), store, json=json)


def _check_catalogue(store: Path, catalogue: str | None, *, is_new: bool) -> None:
    """For a dry run, whose copy has its catalogue in a file: what the server would refuse."""
    from labelstore.catalogue.server import check_server
    from labelstore.labelling.label_images import check_catalogue

    check_catalogue(store, catalogue, is_new=is_new)
    if catalogue is not None and is_new:
        check_server(catalogue)


@with_options
def add_teacher(
    store: Store,
    teacher: TeacherSource,
    about_teacher: NewTeacherOptions,
    labels: LabelOptions,
    work: WorkOptions,
    images: Images = None,
    plan_name: PlanName = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Label the same crops with a further teacher, or the same one in another form.

    Several label sets on one crop plan are what makes ensembles honest. Run again, it resumes or joins.
    """
    import labelstore

    codec = labels.codec()

    from labelstore.labelling.generate import generate
    from labelstore.labelling.label_images import rehearse

    def label(path: Path, progress: OnProgress) -> GenerationReport:
        with labelstore.open(path) as opened:
            return generate(
                opened,
                teacher=about_teacher.load(teacher, opened.catalogue.teachers.all()),
                codec=codec,
                images=images,
                plan=opened.plan(plan_name).name,
                generation=about_teacher.generation(work, labels.name),
                check=about_teacher.check(),
                progress=progress,
                note=say_once,
            )

    if not dry_run:
        _print_report(_labelled(store, label), store, json=json)
        return
    rehearse(store, label)
    with labelstore.open(store, readonly=True) as opened:
        plan = opened.plan(plan_name)
        crops, names = opened.num_images * plan.num_crops, opened.label_sets
        record = {
            "store": store,
            "plan": plan.name,
            "images": opened.num_images,
            "num_crops": plan.num_crops,
            "crops": crops,
            "codec": codec.to_record(),
            "label_sets": names,
        }
    would = f"would label {crops:,} crops of plan {plan.name} in {store}, which holds label sets "
    answer(record, would + (", ".join(names) or "none"), json=json)


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
        with open_to_write(store, dry_run=dry_run) as opened:
            _take_in(opened, store, images, skip_bad=work.skip_bad, dry_run=dry_run, json=json)
        return

    from labelstore.labelling.growing import plan_growth
    from labelstore.labelling.label_images import rehearse

    if num_crops is not None:
        with labelstore.open(store, readonly=True) as opened:
            plan_growth(opened, num_crops, plan=plan_name)  # before the teacher is loaded

    def label(path: Path, progress: OnProgress) -> GenerationReport:
        with labelstore.open(path) as opened:
            return labelstore.grow(
                opened,
                num_crops=num_crops,
                teacher=about_teacher.load(teacher, opened.catalogue.teachers.all()),
                images=images,
                label_set=label_set,
                plan=plan_name,
                generation=about_teacher.generation(work),
                progress=progress,
                note=say_once,
            )

    if dry_run:
        rehearse(store, label)
        with labelstore.open(store, readonly=True) as opened:
            if num_crops is None:
                _take_in(opened, store, images, skip_bad=work.skip_bad, dry_run=True, json=json)
            else:
                _report_growth(opened, store, num_crops, plan_name, json=json)
        return
    report = _labelled(store, label)
    with labelstore.open(store, readonly=True) as opened:
        plan = opened.plan(opened.label_set_row(report.label_set).plan)
        behind = _left_behind(opened, plan.name)
    _print_report(report, store, json=json, more={"num_crops_per_image": plan.num_crops, **behind})
    if is_first_rank() and not json:
        _say_what_is_left(behind, store)


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The data set of `labelstore demo-images`."""

    seed: int = 0
    """Other pictures for another seed."""
    teacher: int = 4000
    """Images in teacher/."""
    train: int = 1000
    """Images in train/, all of them in teacher/ too."""
    val: int = 1000
    """Images in val/."""
    sides: Annotated[str, option(metavar="LOW,HIGH")] = "160,256"
    """Shortest and longest side of a picture, in pixels."""


@with_options
def demo_images(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    pictures: DemoOptions,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write a small image folder to try things on: digits set into photographs.

    An interrupted folder is completed, a complete one is left as it is.
    """
    wanted = vars(pictures)
    low, high = numbers(pictures.sides, "--sides", "LOW", "HIGH")

    from labelstore.testing.demo_folder import make_demo_images

    with Progress("demo images", "images") as progress:
        made = make_demo_images(
            folder,
            **{**wanted, "sides": (int(low), int(high))},
            dry_run=dry_run,
            progress=progress,
        )
    if not dry_run:
        answer(made, str(made), json=json)
        return
    counts = {name: wanted[name] for name in ("teacher", "train", "val")}
    would = "would write {teacher} teacher, {train} train and {val} val images to "
    answer({"folder": folder, **counts}, would.format(**counts) + str(folder), json=json)


def _labelled(store: Path, label: Label) -> GenerationReport:
    with Progress("labels", "crops") as progress:
        return label(store, progress)


def _print_report(
    report: GenerationReport, store: Path, *, json: bool, more: dict[str, Any] | None = None
) -> None:
    """Say what was labelled, and what was left out; the first rank only."""
    if not is_first_rank():
        return
    if json:
        print_json({"store": store, **asdict(report), **(more or {})})
        return
    for key, reason in report.bad.items():
        say(f"left out {key}: {reason}")
    if report.num_crops:
        rate = f"{report.crops_per_second:,.0f} crops/s"
        share = " by this process" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        print_all(
            f"{report.num_crops:,} crops labelled{share} in {duration(report.seconds)} ({rate})"
        )
    print_all(f"label set {report.label_set} in {store} is complete: {report.num_images:,} images")


def _report_plan(
    store: Path, folder: ImageSource, crops: CropOptions, label: Label, *, json: bool
) -> None:
    from labelstore.images import ignored_words
    from labelstore.labelling.label_images import rehearse

    rehearse(store, label)
    num_crops = crops.num_crops
    if crops.plan_of is not None:
        import labelstore

        with labelstore.open(crops.plan_of, readonly=True) as other:
            num_crops = other.num_crops
    assert num_crops is not None
    record = {
        "store": store,
        "exists": store.exists(),
        "images": len(folder.keys),
        "ignored_files": dict(folder.ignored),
        "classes": len(folder.classes),
        "num_crops": num_crops,
        "crops": len(folder.keys) * num_crops,
    }
    ignored = ignored_words(folder.ignored)
    text = (
        f"would {'resume' if store.exists() else 'make'} {store}: {record['images']:,} images of "
        f"{record['classes']:,} classes, {num_crops} crops each, {record['crops']:,} in all"
    )
    answer(record, f"{text}; {ignored}" if ignored else text, json=json)


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
    new = (plan_new_images if dry_run else add_images)(opened, folder, skip_bad=skip_bad)
    text = f"{store} has all {new.num_images:,} images of {folder}: nothing to do"
    if new.num_new:
        did = "would join" if dry_run else "joined"
        text = f"{new.num_new:,} images {did} {store}, from row {new.first_row} on: {new.num_images:,} in all"
    answer({"store": store, **asdict(new), "dry_run": dry_run}, text, json=json)
    if not dry_run and not json:
        left = {"incomplete_label_sets": new.unfinished, "masks_to_update": new.masks}
        _say_what_is_left(left, store)


def _report_growth(
    opened: labelstore.Store, store: Path, num_crops: int, plan: str | None, *, json: bool
) -> None:
    from labelstore.labelling.growing import plan_growth

    growth = plan_growth(opened, num_crops, plan=plan)
    answer(
        {"store": store, **asdict(growth)},
        f"would grow plan {growth.plan} of {store} from {growth.num_crops} to "
        f"{growth.new_num_crops} crops of each of {opened.num_images:,} images; "
        f"label sets {', '.join(growth.label_sets) or 'none'}; "
        f"masks {', '.join(growth.masks) or 'none'}",
        json=json,
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
    """Label sets and masks of the plan that have not grown yet."""
    from labelstore.labelling.growing import uncovered, unfinished

    on_plan = {row.name for row in store.catalogue.label_sets.all() if row.plan == plan}
    masks_on_plan = {row.name for row in store.catalogue.masks.all() if row.plan == plan}
    return {
        "incomplete_label_sets": [name for name in unfinished(store) if name in on_plan],
        "masks_to_update": [name for name in uncovered(store) if name in masks_on_plan],
    }
