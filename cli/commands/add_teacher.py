"""`labelstore add-teacher`: a further label set on the crops that a store has."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from cli.options import DryRun, Json, Store, seconds
from cli.output import print_json, say
from cli.progress import Progress
from cli.teacher_options import (
    LABELS,
    TEACHER,
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


def add_teacher(
    store: Store,
    images: Images,
    teacher: TeacherSource,
    teacher_model: TeacherModel = None,
    class_map: ClassMap = None,
    temperature: Annotated[
        float,
        typer.Option("--temperature", "--temp", help="Of the softmax.", rich_help_panel=TEACHER),
    ] = 1.0,
    compression: Annotated[
        str,
        typer.Option(
            metavar="CODEC",
            help="Lossy form of a label: full, hard, smoothing, ms or mr (FKD 3.5).",
            rich_help_panel=LABELS,
        ),
    ] = "ms",
    k: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Classes that ms and mr keep.",
            show_default="5",
            rich_help_panel=LABELS,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="Of the probabilities: float32, float16 or uint8.",
            rich_help_panel=LABELS,
        ),
    ] = "float16",
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the label set.",
            show_default="the teacher's",
            rich_help_panel=LABELS,
        ),
    ] = None,
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
    """Label the same crops with a further teacher, or the same one in another form.

    Several label sets on one crop plan are what makes ensembles honest. Run again, it resumes or joins.
    """
    import labelstore
    from labelstore.codecs import codec_from_options

    codec = codec_from_options(compression, k, dtype)
    max_seconds = None if max_time is None else seconds(max_time, "--max-time")
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

        from labelstore.generation import generate, load_teacher

        with Progress("labels", "crops") as progress:
            report = generate(
                opened,
                teacher=load_teacher(teacher, architecture=teacher_model),
                codec=codec,
                images=images,
                name=name,
                plan=plan.name,
                temperature=temperature,
                class_map=class_map,
                batch_size=batch_size,
                device=device or device_of_this_process(),
                autocast=amp,  # type: ignore[arg-type] # checked by the labeller
                workers=workers,
                skip_bad=skip_bad,
                max_seconds=max_seconds,
                progress=progress,
                note=say,
            )
    if json:
        print_json({"store": store, **asdict(report)})
    else:
        print_report(report, store)
