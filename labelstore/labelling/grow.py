"""More crops of every image, or more images: each teacher labels what is new for its label set.

Crops are numbered and drawn one by one (crop_plan.py), so the first M of a larger plan are the old ones: shards
are added and none is rewritten. From then on every label set of the plan is incomplete until its own teacher
has labelled the new crops (`grow` again) or, for a variant, `derive` has been called again. How new images
join is in new_images.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelstore.catalogue.records import DERIVED, LabelSetRow
from labelstore.codecs import codec_from_record
from labelstore.cropping.crop_plan import is_imported
from labelstore.errors import UsageError
from labelstore.images import ImageSource, open_images
from labelstore.labelling.generate import GenerationReport, generate
from labelstore.labelling.label_facts import recorded_images
from labelstore.labelling.new_images import add_images
from labelstore.store import Store
from labelstore.store.layout import check_num_crops
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
    note: Callable[[str], None] = lambda message: None,
    **generation: Any,  # noqa: ANN401 - passed on to generate(), which names and checks them
) -> GenerationReport:
    """Grow a plan to `num_crops` crops of every image, and label the new ones with the teacher of a label set.

    Without `num_crops` the images that were added to the folder join the store, and get as many crops as the
    others; RejectedInput where one of the store's is gone or changed, a new one is no image, or a class is new (see
    `add_images`).
    Images, class map, autocast and crop device are as recorded with the label set where they are not given.
    On a plan that has as many crops already it resumes or joins. `label_set` is needed where the teacher has
    several on the plan. UsageError for fewer crops, for a number that is no multiple of the plan's
    crops_per_shard, and for a teacher without labels on the plan. The plan is grown after everything was checked:
    whatever `generate` or `add_images` refuses leaves the store as it was.
    """
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
            add_images(store, folder, skip_bad=bool(generation.get("skip_bad")))
        with store.catalogue.transaction() as connection:
            if store.plan(growth.plan).num_crops < num_crops:
                store.catalogue.plans.change(connection, growth.plan, num_crops=num_crops)
        store.refresh()
        store.write_metadata()

    record = dict(row.codec)
    if "class_ids" in record:
        record["class_ids"] = "plain"  # what the first shard decided is kept by the label set
    return generate(
        store,
        teacher=teacher,
        codec=codec_from_record(record),
        images=folder,
        name=row.name,
        plan=growth.plan,
        temperature=row.temperature,
        note=note,
        begin=begin,
        **generation,
    )


def plan_growth(store: Store, num_crops: int, *, plan: str | None = None) -> Growth:
    """What growing to `num_crops` would do; UsageError where it cannot be."""
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
        held = store.teacher(row.teacher)
        if (held.digest, held.input_size) != (teacher.row.digest, teacher.row.input_size):
            raise UsageError(
                f"label set {name} was made by teacher {row.teacher} ({held.source}), whose weights or input "
                "size are others: give that teacher"
            )
        return row
    known = {
        held.name
        for held in store.catalogue.teachers.all()
        if (held.digest, held.input_size) == (teacher.row.digest, teacher.row.input_size)
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
