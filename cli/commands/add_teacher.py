"""`labelstore add-teacher`: a further label set on the crops that a store has."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

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
    TailClasses,
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
    tail_classes: TailClasses = None,
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

    codec = codec_from_options(compression, k, dtype, tail_classes)
    check_work(amp, crop_device, weights)
    one_of(classes, "--classes", ("data", "teacher"))
    check = teacher_check(val, expect_top1, val_images)
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

        from labelstore.labelling.generate import generate
        from labelstore.teachers.teacher import load_teacher
        from labelstore.teachers.teacher_check import TeacherCheck

        with progress_of("labels", "crops") as progress:
            report = generate(
                opened,
                teacher=load_teacher(
                    teacher,
                    architecture=teacher_model,
                    weights=weights,  # type: ignore[arg-type] # checked above
                    note=say_once,
                ),
                codec=codec,
                images=images,
                name=name,
                plan=plan.name,
                temperature=temperature,
                class_map=class_map,
                classes=classes,
                class_names=class_names,
                allow_lost_mass=allow_lost_mass,
                check=None if check is None else TeacherCheck(**check),
                batch_size=batch_size,
                device=device or device_of_this_process(),
                autocast=amp,
                crop_device=crop_device,
                compile_teacher=compile_teacher,
                workers=workers,
                skip_bad=skip_bad,
                max_seconds=max_seconds,
                progress=progress,
                note=say_once,
            )
    if not json:
        print_report(report, store)
    elif is_first_rank():
        print_json({"store": store, **asdict(report)})
