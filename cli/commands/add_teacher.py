"""`labelstore add-teacher`: a further label set on the crops that a store has."""

from __future__ import annotations

from typing import Any

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
    with labelstore.open(store, readonly=dry_run) as opened:
        plan = opened.plan(plan_name)
        if dry_run:
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
            else:
                print(
                    f"would label {record['crops']:,} crops of plan {plan.name} in {store}, which holds "
                    f"label sets {', '.join(opened.label_sets) or 'none'}"
                )
            return

        with progress_of("labels", "crops") as progress:
            report = labelstore.generate(
                opened,
                teacher=about_teacher.load(teacher),
                codec=codec,
                images=images,
                name=labels.name,
                plan=plan.name,
                **about_teacher.arguments(),
                **work.arguments(),
                progress=progress,
            )
    print_report(report, store, json=json)
