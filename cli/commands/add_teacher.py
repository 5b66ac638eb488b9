"""`labelstore add-teacher`: a further label set on the crops that a store has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.field_options import with_options
from cli.options import DryRun, Json, Store
from cli.output import print_json
from cli.teacher_options import (
    Images,
    LabelOptions,
    NewTeacherOptions,
    PlanName,
    TeacherSource,
    WorkOptions,
    print_report,
    progress_of,
)

if TYPE_CHECKING:
    from labelstore.codecs.base import LabelCodec
    from labelstore.commit.lease_keeper import Progress
    from labelstore.labelling.generate import GenerationReport


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

    def label(path: Path, progress: Progress) -> GenerationReport:
        with labelstore.open(path) as opened:
            return generate(
                opened,
                teacher=about_teacher.load(teacher, opened.catalogue.teachers.all()),
                codec=codec,
                images=images,
                name=labels.name,
                plan=opened.plan(plan_name).name,
                **about_teacher.arguments(),
                **work.arguments(),
                progress=progress,
            )

    if dry_run:
        rehearse(store, label)
        _report_labels(store, plan_name, codec, json=json)
        return
    with progress_of("labels", "crops") as progress:
        report = label(store, progress)
    print_report(report, store, json=json)


def _report_labels(store: Path, plan_name: str | None, codec: LabelCodec, *, json: bool) -> None:
    import labelstore

    with labelstore.open(store, readonly=True) as opened:
        plan = opened.plan(plan_name)
        record: dict[str, Any] = {
            "store": store,
            "plan": plan.name,
            "images": opened.num_images,
            "num_crops": plan.num_crops,
            "crops": opened.num_images * plan.num_crops,
            "codec": codec.to_record(),
            "label_sets": opened.label_sets,
        }
    if json:
        print_json(record)
        return
    held = ", ".join(record["label_sets"]) or "none"
    print(
        f"would label {record['crops']:,} crops of plan {record['plan']} in {store}, which holds label sets {held}"
    )
