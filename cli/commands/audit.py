"""`labelstore audit`: the teacher sees stored crops again, and its labels are compared with the stored ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.field_options import option, with_options
from cli.options import Json, LabelSet, Seed, Store
from cli.output import print_json, say
from cli.progress import Progress, duration
from cli.teacher_options import (
    ForwardOptions,
    Images,
    SameTeacher,
    TeacherModel,
    check_teacher_model,
)

if TYPE_CHECKING:
    from labelstore.care.auditing import AuditReport

DAMAGE = 3
NAMED = 20
"""Crops that are named one by one."""


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
    if json:
        print_json({"store": store, **asdict(report)})
    else:
        _print(store, report)
    if not report.is_sound:
        raise typer.Exit(DAMAGE)


def _print(store: Path, report: AuditReport) -> None:
    print(
        f"{report.num_crops:,} crops of {report.num_images:,} images of {report.label_set} in "
        f"{duration(report.seconds)}: probabilities differ by {report.largest:.2g} at most, "
        f"{report.mean:.2g} in the mean (rounding {report.rounding:.2g}, tolerance {report.tolerance:.2g})"
    )
    for crop in report.beyond[:NAMED]:
        print(
            f"crop {crop.crop} of {crop.key}: differs by {crop.difference:.3g}; stored class {crop.stored_top1}, "
            f"the teacher says {crop.fresh_top1}"
        )
    if report.beyond:
        say(
            f"{len(report.beyond):,} of {report.num_crops:,} crops are not what the teacher says: was --images or the "
            f"teacher another one? If not, drop label set {report.label_set} and label again"
        )
