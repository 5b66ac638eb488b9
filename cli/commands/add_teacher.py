"""`labelstore add-teacher`: a further label set on the crops that a store has."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.options import DryRun, Json, Store, seconds
from cli.output import print_json
from cli.teacher_options import (
    AllowLostMass,
    Amp,
    BatchSize,
    ClassMap,
    ClassNames,
    Compile,
    Compression,
    CropDevice,
    Device,
    Dtype,
    ExpectTop1,
    Images,
    KeptClasses,
    LabelClasses,
    LabelSetName,
    MaxTime,
    PlanName,
    SkipBad,
    TeacherModel,
    TeacherSource,
    TeacherWeights,
    Temperature,
    Val,
    ValImages,
    Workers,
    check_work,
    device_of_this_process,
    is_first_rank,
    one_of,
    print_report,
    progress_of,
    say_once,
    teacher_check,
)

if TYPE_CHECKING:
    from labelstore.codecs.base import LabelCodec
    from labelstore.commit.lease_keeper import Progress
    from labelstore.labelling.worker import GenerationReport


def add_teacher(
    store: Store,
    teacher: TeacherSource,
    images: Images = None,
    teacher_model: TeacherModel = None,
    weights: TeacherWeights = None,
    class_map: ClassMap = None,
    classes: LabelClasses = None,
    class_names: ClassNames = None,
    allow_lost_mass: AllowLostMass = False,
    temperature: Temperature = 1.0,
    val: Val = None,
    expect_top1: ExpectTop1 = None,
    val_images: ValImages = 2000,
    compression: Compression = "ms",
    k: KeptClasses = None,
    dtype: Dtype = None,
    name: LabelSetName = None,
    plan_name: PlanName = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    amp: Amp = None,
    crop_device: CropDevice = None,
    compile_teacher: Compile = False,
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
    check_work(amp, crop_device, weights)
    one_of(classes, "--classes", ("data", "teacher"))
    check = teacher_check(val, expect_top1, val_images)
    max_seconds = None if max_time is None else seconds(max_time, "--max-time")

    from labelstore.labelling.generate import generate
    from labelstore.labelling.rehearsal import rehearse
    from labelstore.teachers.teacher import load_teacher, recorded_architecture
    from labelstore.teachers.teacher_check import TeacherCheck

    def label(path: Path, progress: Progress) -> GenerationReport:
        with labelstore.open(path) as opened:
            return generate(
                opened,
                teacher=load_teacher(
                    teacher,
                    architecture=teacher_model
                    or recorded_architecture(teacher, opened.catalogue.teachers.all()),
                    weights=weights,  # type: ignore[arg-type] # checked above
                    note=say_once,
                ),
                codec=codec,
                images=images,
                name=name,
                plan=opened.plan(plan_name).name,
                temperature=temperature,
                class_map=class_map,
                classes=classes,  # type: ignore[arg-type]
                class_names=class_names,
                allow_lost_mass=allow_lost_mass,
                check=None if check is None else TeacherCheck(**check),
                batch_size=batch_size,
                device=device or device_of_this_process(),
                autocast=amp,  # type: ignore[arg-type] # checked above, as is the next
                crop_device=crop_device,  # type: ignore[arg-type]
                compile_teacher=compile_teacher,
                workers=workers,
                skip_bad=skip_bad,
                max_seconds=max_seconds,
                progress=progress,
                note=say_once,
            )

    if dry_run:
        rehearse(store, label)
        _report_labels(store, plan_name, codec, json=json)
        return
    with progress_of("labels", "crops") as progress:
        report = label(store, progress)
    if not json:
        print_report(report, store)
    elif is_first_rank():
        print_json({"store": store, **asdict(report)})


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
