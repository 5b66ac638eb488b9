"""More crops of every image, or more images: each teacher labels what is new for its label set.

Crops are numbered and drawn one by one (crop_plan.py), so the first M of a larger plan are the old ones: shards
are added and none is rewritten. From then on every label set of the plan is incomplete until its own teacher
has labelled the new crops (`grow` again) or, for a variant, `derive` has been called again.

Images that were added to the folder get new rows after the old ones, which stay what they are. A committed shard is
never written again, so new images begin a new image block; rows between the last old image and that block stay free
for good (`Store.free`). A mask covers the crops and blocks that it was made for until it is updated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelstore.catalogue.records import DERIVED, LabelSetRow
from labelstore.codecs import codec_from_record
from labelstore.codecs.base import with_class_ids
from labelstore.commit.lease_keeper import Progress
from labelstore.cropping.crop_plan import is_imported
from labelstore.errors import ConflictError, RejectedInput, UsageError
from labelstore.images import ImageSource, image_size, open_images
from labelstore.labelling.generate import GenerationReport, generate, no_progress
from labelstore.labelling.generation_options import GenerationOptions
from labelstore.labelling.image_check import check_images
from labelstore.labelling.label_facts import recorded_images
from labelstore.store import Store
from labelstore.store.layout import Layout, check_num_crops, label_layout
from labelstore.teachers.teacher import Teacher, load_teacher


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What growing a plan means for everything on it."""

    plan: str
    num_crops: int
    """M as it is."""
    new_num_crops: int
    """M as it shall be."""
    label_sets: tuple[str, ...]
    """Label sets of the plan: each is incomplete until it has grown too."""
    masks: tuple[str, ...]
    """Masks of the plan: each covers the crops that it was made for until it is updated."""


def grow(
    store: Store,
    *,
    num_crops: int | None = None,
    teacher: str | Teacher,
    images: str | Path | ImageSource | None = None,
    label_set: str | None = None,
    plan: str | None = None,
    generation: GenerationOptions | None = None,
    progress: Progress = no_progress,
    note: Callable[[str], None] = lambda message: None,
) -> GenerationReport:
    """Grow a plan to `num_crops` crops of every image, and label the new ones with the teacher of a label set.

    Without `num_crops` the images that were added to the folder join the store, and get as many crops as the
    others; RejectedInput where one of the store's is gone or changed, a new one is no image, or a class is new (see
    `add_images`).
    Images, class map, autocast and crop device are as recorded with the label set where they are not given; name and
    temperature are always the label set's.
    On a plan that has as many crops already it resumes or joins. `label_set` is needed where the teacher has
    several on the plan. UsageError for fewer crops, for a number that is no multiple of the plan's
    crops_per_shard, and for a teacher without labels on the plan. The plan is grown after everything was checked:
    whatever `generate` or `add_images` refuses leaves the store as it was.
    """
    generation = generation or GenerationOptions()
    adds_images = num_crops is None
    num_crops = store.plan(plan).num_crops if num_crops is None else num_crops
    growth = plan_growth(store, num_crops, plan=plan)
    teacher = load_teacher(teacher) if isinstance(teacher, str) else teacher
    row = _label_set_of(store, teacher, growth.plan, label_set)
    if images is None:
        images = recorded_images(store, row)
    folder = open_images(images)

    def begin() -> None:
        if adds_images:
            add_images(store, folder, skip_bad=generation.skip_bad)
        with store.catalogue.transaction() as connection:
            if store.plan(growth.plan).num_crops < num_crops:
                store.catalogue.plans.change(connection, growth.plan, num_crops=num_crops)
        store.refresh()
        store.write_metadata()

    record = with_class_ids(row.codec, "plain")  # the label set keeps what its first shard decided
    return generate(
        store,
        teacher=teacher,
        codec=codec_from_record(record),
        images=folder,
        plan=growth.plan,
        generation=replace(generation, name=row.name, temperature=row.temperature),
        progress=progress,
        note=note,
        begin=begin,
    )


def plan_growth(store: Store, num_crops: int, *, plan: str | None = None) -> Growth:
    """Return what growing to `num_crops` would do; UsageError where it cannot be."""
    row = store.plan(plan)
    if num_crops < row.num_crops:
        raise UsageError(
            f"`num_crops={num_crops}`: {store.path} has {row.num_crops} crops of each image and never "
            "shrinks; a run draws fewer by itself"
        )
    if is_imported(row.parameters) and num_crops > row.num_crops:
        raise UsageError(
            f"`num_crops={num_crops}`: the {row.num_crops} crops of plan {row.name} were imported with their labels "
            "and follow from no seed, so that there are no further ones: make another store, or train from these"
        )
    check_num_crops(num_crops)
    if num_crops % row.crops_per_shard:
        below = num_crops // row.crops_per_shard * row.crops_per_shard
        raise UsageError(
            f"`num_crops={num_crops}`: a plan grows by whole shards of {row.crops_per_shard} crops, "
            f"choose {below} or {below + row.crops_per_shard}"
        )
    catalogue = store.catalogue
    return Growth(
        plan=row.name,
        num_crops=row.num_crops,
        new_num_crops=num_crops,
        label_sets=tuple(r.name for r in catalogue.label_sets.all() if r.plan == row.name),
        masks=tuple(r.name for r in catalogue.masks.all() if r.plan == row.name),
    )


def _label_set_of(store: Store, teacher: Teacher, plan: str, name: str | None) -> LabelSetRow:
    """The label set that the teacher is to grow."""
    if name is not None:
        row = store.label_set_row(name)  # whether it is this teacher's is checked by generate()
        if row.plan != plan:
            raise UsageError(f"label set {name} is on crop plan {row.plan}, not {plan}")
        recorded = store.teacher(row.teacher)
        if (recorded.digest, recorded.input_size) != (teacher.row.digest, teacher.row.input_size):
            raise UsageError(
                f"label set {name} was made by teacher {row.teacher} ({recorded.source}), whose weights or input "
                "size are others: give that teacher"
            )
        return row
    known = {
        recorded.name
        for recorded in store.catalogue.teachers.all()
        if (recorded.digest, recorded.input_size) == (teacher.row.digest, teacher.row.input_size)
    }
    on_plan = [row for row in store.catalogue.label_sets.all() if row.plan == plan]
    mine = [row for row in on_plan if row.teacher in known]
    if len(mine) > 1:
        # those that were derived from another one can be derived again without the teacher
        mine = [row for row in mine if not _is_derived(store, row)] or mine
    if len(mine) == 1:
        return mine[0]
    if mine:
        names = ", ".join(row.name for row in mine)
        raise UsageError(
            f"teacher {mine[0].teacher} has label sets {names}: choose with `label_set`"
        )
    made = ", ".join(f"{row.name} by {row.teacher}" for row in on_plan) or "no label set"
    raise UsageError(
        f"this teacher has no labels on crop plan {plan}, which has {made}: give one of these teachers, or "
        "`labelstore.generate(store, ...)` for a new one"
    )


def _is_derived(store: Store, row: LabelSetRow) -> bool:
    shards = store.catalogue.ledger.shards(f"labels/{row.name}")
    return bool(shards) and all(shard.device.startswith(DERIVED) for shard in shards)


ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class NewImages:
    """What taking in the new images of a folder does, or would do."""

    num_new: int
    """Images in the folder that the store did not have."""
    num_images: int
    """N, the new ones included."""
    first_row: int | None
    """Row of the first new image; None where there is none."""
    free_rows: int
    """Rows between the last old image and the first new one, which stay free."""
    unfinished: tuple[str, ...]
    """Label sets that have no labels for some images."""
    masks: tuple[str, ...]
    """Masks that do not cover all images."""


def plan_new_images(
    store: Store, images: str | Path | ImageSource, *, skip_bad: bool = False
) -> NewImages:
    """Return what `add_images` would do. Refuses what it refuses, and writes nothing."""
    new = _new_rows(store, open_images(images), skip_bad)
    first = -(-store.num_rows // _multiple(store)) * _multiple(store)
    return NewImages(
        num_new=len(new),
        num_images=store.num_images + len(new),
        first_row=first if len(new) else None,
        free_rows=first - store.num_rows if len(new) else 0,
        unfinished=store.label_sets if len(new) else unfinished(store),
        masks=store.masks if len(new) else uncovered(store),
    )


def add_images(
    store: Store, images: str | Path | ImageSource, *, skip_bad: bool = False
) -> NewImages:
    """Register the images of the folder that the store does not have; called again it finds nothing to do.

    Rows are never renumbered and no file of labels is touched. RejectedInput, naming it, for an image of the
    store that is gone or changed, for a new one that by its header is none (`skip_bad` lets it join, to be left out
    when labels are made), and for a folder of a class that the store does not have: class ids and the
    teachers' outputs belong to the classes that it was made with. UsageError for a plan of imported crops, which
    has none for other images. Nothing is written then.
    """
    folder = open_images(images)
    for attempt in range(ATTEMPTS):
        new = _new_rows(store, folder, skip_bad)
        before = store.num_rows
        try:
            rows = _append(store, folder, new)
            break
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise
            store.refresh()  # another process took them in at this moment
    # also where nothing is new: the process that registered them may have been killed before this
    store.write_metadata()
    return NewImages(
        num_new=len(rows),
        num_images=store.num_images,
        first_row=rows.start if rows else None,
        free_rows=rows.start - before if rows else 0,
        unfinished=unfinished(store),
        masks=uncovered(store),
    )


def _append(store: Store, folder: ImageSource, new: NDArray[np.int64]) -> range:
    if not len(new):
        return range(0)
    ids = {name: number for number, name in enumerate(store.class_names)}
    rows = store.catalogue.images.append(
        [folder.keys[i] for i in new],
        [ids[folder.classes[folder.class_ids[i]]] for i in new],
        folder.sizes[new],
        folder.mtimes_ns[new],
        multiple=_multiple(store),
    )
    store.refresh()
    return rows


def _new_rows(store: Store, folder: ImageSource, skip_bad: bool) -> NDArray[np.int64]:
    """Positions in the folder of the images that the store does not have."""
    strange = [name for name in folder.classes if name not in set(store.class_names)]
    if strange:
        raise RejectedInput(
            f"{folder.root}: {strange[0]} is a class that {store.path} does not have ({len(strange)} new): class ids "
            "and teachers' outputs belong to the classes that it was made with; leave its images out, or make "
            "another store"
        )
    check_images(store, folder, lambda message: None, skip_bad=skip_bad)
    known = set(store.image_columns["key"])
    new = np.array([i for i, key in enumerate(folder.keys) if key not in known], np.int64)
    imported = [row.name for row in store.catalogue.plans.all() if is_imported(row.parameters)]
    if len(new) and imported:
        raise UsageError(
            f"crop plan {imported[0]} was imported with its labels and has no crops for {folder.keys[new[0]]}: "
            "drop it first (`labelstore drop plan`), or make another store"
        )
    for i in () if skip_bad else new:
        try:
            image_size(folder.file(folder.keys[i]))
        except RejectedInput as error:
            raise RejectedInput(
                f"{error}; `skip_bad` lets such images join, and leaves them out when labels are made"
            ) from None
    return new


def _multiple(store: Store) -> int:
    """Rows at which an image block of every plan begins."""
    return math.lcm(*(row.images_per_shard for row in store.catalogue.plans.all()), 1)


def unfinished(store: Store) -> tuple[str, ...]:
    """Label sets that lack labels for some crops or images."""
    names = []
    for row in store.catalogue.label_sets.all():
        layout = label_layout(row, store.plan(row.plan), store.num_rows)
        if not _is_whole(store, f"labels/{row.name}", layout):
            names.append(row.name)
    return tuple(names)


def uncovered(store: Store) -> tuple[str, ...]:
    """Masks that do not cover all crops and images."""
    return tuple(
        row.name
        for row in store.catalogue.masks.all()
        if row.num_crops < store.plan(row.plan).num_crops
        or not _is_whole(
            store, f"masks/{row.name}", Layout.of(store.plan(row.plan), store.num_rows)
        )
    )


def _is_whole(store: Store, group: str, layout: Layout) -> bool:
    committed = store.catalogue.ledger.committed(group)
    return sum(map(len, committed.values())) >= layout.num_blocks * layout.num_crop_shards
