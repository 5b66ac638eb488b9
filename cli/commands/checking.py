"""Commands that find damage and repair it: `labelstore verify`, `audit`, `repair`; exit code 3 where there is some."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli.field_options import option, with_options
from cli.output import answer, duration, say, size
from cli.progress import Progress
from cli.shared_options import BlockOptions, DryRun, Json, LabelSet, Seed, Store
from cli.teacher_options import (
    ForwardOptions,
    Images,
    SameTeacher,
    TeacherModel,
    check_teacher_model,
)
from cli.wording import spoken

if TYPE_CHECKING:
    from labelstore.care.leftovers import Leftover
    from labelstore.care.verify_report import Level

DAMAGE = 3
NAMED = 20
"""Crops that are named one by one."""


@with_options
def verify(
    store: Store,
    fast: Annotated[
        bool, option("--fast", help="Only look whether files are there, and their size.")
    ] = False,
    deep: Annotated[
        bool,
        option("--deep", help="Also decode every value: ranges, sums, order, boxes in images."),
    ] = False,
    *,
    blocks: BlockOptions,
    json: Json = False,
) -> None:
    """Compare every committed shard, the metadata and the catalogue with their digests.

    One line per problem, with what to do about it; exit code 3 if there is one. Files that no
    catalogue row names are listed too, but are no damage. Writes nothing.
    """
    from labelstore.care.verification import verify as run
    from labelstore.errors import UsageError

    if fast and deep:
        raise UsageError("--fast and --deep together: give one of them, or neither")
    level: Level = "fast" if fast else "deep" if deep else "digests"
    with blocks.mapped() as map_blocks, Progress("verify", "shards") as progress:
        report = run(store, level, map_blocks=map_blocks, progress=progress)
    count = len(report.problems)
    answer(
        report.to_record(),
        *(spoken(str(problem)) for problem in report.problems),
        *(_left_over(leftover, report.store) for leftover in report.leftovers),
        f"{report.store}: {'frozen, ' if report.frozen else ''}{report.shards:,} shards, {report.files:,} files, "
        f"{size(report.bytes)} in {duration(report.seconds)}: {f'{count} problems' if count else 'sound'}",
        json=json,
    )
    if not report.is_sound:
        raise typer.Exit(DAMAGE)


def _left_over(found: Leftover, store: str) -> str:
    advice = (
        "not a file that labelstore writes: move it elsewhere"
        if found.kind == "foreign"
        else f"no damage; `labelstore gc {store}` removes it after an hour"
    )
    return f"{store}/{found.path}: {found.kind} file that nothing refers to, {found.bytes:,} bytes; {advice}"


@with_options
def audit(
    store: Store,
    work: ForwardOptions,
    images: Images = None,
    teacher: SameTeacher = None,
    teacher_model: TeacherModel = None,
    label_set: LabelSet = None,
    sample: Annotated[int, option(metavar="N", help="Crops to look at.")] = 1000,
    tolerance: Annotated[
        float | None,
        option(
            metavar="P",
            help="Largest difference of a probability that is no damage.",
            unset="by dtype and autocast",
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run the teacher again on stored crops and compare its probabilities with the stored ones.

    `labelstore verify` finds bytes that changed; this finds labels that were wrong when they were written:
    other images, other weights, other preprocessing. Exit code 3 where a crop is beyond the tolerance.
    """
    import labelstore

    check_teacher_model(teacher, teacher_model)
    with labelstore.open(store, readonly=True) as opened, Progress("audit", "crops") as progress:
        from labelstore.care.auditing import audit as run
        from labelstore.teachers.teacher import load_teacher

        report = run(
            opened,
            label_set=label_set,
            images=images,
            teacher=load_teacher(teacher, architecture=teacher_model)
            if teacher and teacher_model
            else teacher,
            sample=sample,
            tolerance=tolerance,
            seed=seed,
            **work.arguments(),
            progress=progress,
        )
    answer(
        {"store": store, **asdict(report)},
        f"{report.num_crops:,} crops of {report.num_images:,} images of {report.label_set} in "
        f"{duration(report.seconds)}: probabilities differ by {report.largest:.2g} at most, "
        f"{report.mean:.2g} in the mean (rounding {report.rounding:.2g}, tolerance {report.tolerance:.2g})",
        *(
            f"crop {crop.crop} of {crop.key}: differs by {crop.difference:.3g}; stored class {crop.stored_top1}, "
            f"the teacher says {crop.fresh_top1}"
            for crop in report.beyond[:NAMED]
        ),
        json=json,
    )
    if report.beyond and not json:
        say(
            f"{len(report.beyond):,} of {report.num_crops:,} crops are not what the teacher says: was --images or the "
            f"teacher another one? If not, drop label set {report.label_set} and label again"
        )
    if not report.is_sound:
        raise typer.Exit(DAMAGE)


@with_options
def repair(
    store: Store,
    work: ForwardOptions,
    images: Images = None,
    teacher: SameTeacher = None,
    class_map: Annotated[
        str | None,
        option(
            metavar="FILE",
            help="CSV lines `class name,teacher output`, or wnid.",
            unset="as recorded",
        ),
    ] = None,
    whole_shards: Annotated[
        bool,
        option(
            "--whole-shards",
            help="Replace all files of a damaged shard where the teacher does not make the intact ones "
            "again bit for bit.",
        ),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make damaged shards again, and only them: labels from images, boxes from the plan.

    Finds damage as `labelstore verify` does. Files that match their ledger row stay as they are. Masks are
    computed from labels, metadata files from the catalogue. The teacher's weights must be the recorded ones.
    """
    from labelstore.care.repairing import repair as run
    from labelstore.store import open_store

    with (
        open_store(store, readonly=dry_run, checked=False) as opened,
        Progress("repair", "shards") as progress,
    ):
        report = run(
            opened,
            images=images,
            teacher=teacher,
            class_map=class_map,
            whole_shards=whole_shards,
            **work.arguments(),
            dry_run=dry_run,
            progress=progress,
            note=say,
        )
    verb = "would repair" if dry_run else "repaired"
    count = len(report.metadata) + len(report.shards)
    answer(
        {"store": store, **asdict(report)},
        *(f"{verb} {key}" for key in report.metadata),
        *(
            f"{verb} {', '.join(shard.files)}: images {shard.images[0]}-{shard.images[1]} of {shard.group}, "
            f"crop shard {shard.crop_shard}"
            + ("" if dry_run else ", as it was" if shard.same_bytes else ", new bytes")
            for shard in report.shards
        ),
        *(spoken(str(problem)) for problem in report.remaining),
        f"{verb} {count:,} of {count + len(report.remaining):,} in {duration(report.seconds)}"
        if count or report.remaining
        else f"{store}: nothing to repair",
        json=json,
    )
    if report.remaining:
        raise typer.Exit(DAMAGE)
