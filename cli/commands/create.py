"""`labelstore create`: plan the crops of an image folder and label every one with a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.augmentation_options import (
    ColorJitter,
    Mix,
    MixAlpha,
    MixProb,
    RandAugment,
    RandAugmentOps,
    RandAugmentStd,
    augmentation,
    mixing,
)
from cli.new_store_options import Backend, CropsPerShard, ImagesPerShard
from cli.options import IMAGES, DryRun, Json, Store, numbers, seconds
from cli.output import print_json
from cli.teacher_options import (
    WORK,
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
    KeptClasses,
    LabelClasses,
    LabelSetName,
    MaxTime,
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
    from labelstore.commit.lease_keeper import Progress
    from labelstore.labelling.worker import GenerationReport

CROPS = "Crops"


def create(
    store: Store,
    images: Annotated[
        Path,
        typer.Option(
            metavar=IMAGES,
            help="Folder with one folder per class, .csv or .parquet list of path and class, tar shards "
            "(FILE.tar, s-{000..009}.tar), or a folder that `datasets` saved.",
            show_default=False,
        ),
    ],
    teacher: TeacherSource,
    num_crops: Annotated[
        int | None,
        typer.Option(
            metavar="M",
            help="Crops of each image; not needed with --plan-from.",
            show_default=False,
            rich_help_panel=CROPS,
        ),
    ] = None,
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
    seed: Annotated[
        int | None,
        typer.Option(help="Of the crop plan.", show_default="0", rich_help_panel=CROPS),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Area of a crop over the image's.",
            show_default="0.08,1",
            rich_help_panel=CROPS,
        ),
    ] = None,
    ratio: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Width of a crop over its height.",
            show_default="3/4,4/3",
            rich_help_panel=CROPS,
        ),
    ] = None,
    flip_prob: Annotated[
        float | None,
        typer.Option(help="Share of flipped crops.", show_default="0.5", rich_help_panel=CROPS),
    ] = None,
    color_jitter: ColorJitter = None,
    rand_augment: RandAugment = None,
    rand_augment_std: RandAugmentStd = None,
    rand_augment_ops: RandAugmentOps = None,
    mix: Mix = None,
    mix_alpha: MixAlpha = None,
    mix_prob: MixProb = None,
    crops: Annotated[
        str | None,
        typer.Option(
            metavar="stored|seeded",
            help="Keep boxes and flips in the store, or compute them from the seed.",
            show_default="stored",
            rich_help_panel=CROPS,
        ),
    ] = None,
    plan_from: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE",
            help="Take another store's plan: the same boxes and flips, as many, in the same layout.",
            rich_help_panel=CROPS,
        ),
    ] = None,
    reference_path: Annotated[
        Path | None, typer.Option(hidden=True, help="FKD's name for --plan-from.")
    ] = None,
    plan_name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the crop plan.", rich_help_panel=CROPS)
    ] = "plan",
    compression: Compression = "ms",
    k: KeptClasses = None,
    dtype: Dtype = None,
    name: LabelSetName = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    amp: Amp = None,
    crop_device: CropDevice = None,
    compile_teacher: Compile = False,
    workers: Workers = None,
    images_per_shard: ImagesPerShard = None,
    crops_per_shard: CropsPerShard = None,
    catalogue: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Keep a new store's catalogue on a server: postgresql://HOST/DATABASE, no password in it.",
            show_default="a file in the store",
            rich_help_panel=WORK,
        ),
    ] = None,
    backend: Backend = "zarr",
    skip_bad: SkipBad = False,
    max_time: MaxTime = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Label every crop of an image folder with a teacher; resumes or joins a store that exists.

    Any number of processes may run the same command, also under torchrun: each takes image blocks that no
    other has, and one of them makes the store.
    """
    from labelstore.codecs import codec_from_options

    # refused before torch is imported: what needs no teacher to be seen
    codec = codec_from_options(compression, k, dtype)
    plan_of = plan_from or reference_path
    plan: dict[str, Any] = {
        "num_crops": num_crops,
        "seed": seed,
        "scale": None if scale is None else numbers(scale, "--scale", "LOW", "HIGH"),
        "ratio": None if ratio is None else numbers(ratio, "--ratio", "LOW", "HIGH"),
        "flip_prob": flip_prob,
    }
    _check_plan(plan, plan_of, crops, backend)
    plan["augmentation"] = augmentation(
        color_jitter, rand_augment, rand_augment_std, rand_augment_ops
    )
    plan["mixing"] = mixing(mix, mix_alpha, mix_prob, crops)
    if catalogue is not None:
        from labelstore.catalogue.server import check_server_url

        check_server_url(catalogue)
    check_work(amp, crop_device, weights)
    one_of(classes, "--classes", ("data", "teacher"))
    check = teacher_check(val, expect_top1, val_images)
    max_seconds = None if max_time is None else seconds(max_time, "--max-time")

    from labelstore.labelling.label_images import label_images
    from labelstore.teachers.teacher import load_teacher
    from labelstore.teachers.teacher_check import TeacherCheck

    def label(path: Path, progress: Progress) -> GenerationReport:
        return label_images(
            path,
            images=images,
            teacher=load_teacher(
                teacher,
                architecture=teacher_model,
                weights=weights,  # type: ignore[arg-type] # checked above
                note=say_once,
            ),
            codec=codec,
            **plan,
            plan_name=plan_name,
            plan_of=plan_of,
            stored_crops=None if crops is None else crops == "stored",
            images_per_shard=images_per_shard,
            crops_per_shard=crops_per_shard,
            backend=backend,
            # a dry run makes its copy in a file
            catalogue=None if dry_run else catalogue,
            class_map=class_map,
            classes=classes,
            class_names=class_names,
            allow_lost_mass=allow_lost_mass,
            check=None if check is None else TeacherCheck(**check),
            name=name,
            temperature=temperature,
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

    if dry_run:
        _report_plan(store, images, num_crops, plan_of, label, json=json)
        return
    with progress_of("labels", "crops") as progress:
        report = label(store, progress)
    if not json:
        print_report(report, store)
    elif is_first_rank():
        print_json({"store": store, **asdict(report)})


def _check_plan(
    plan: dict[str, Any], plan_of: Path | None, crops: str | None, backend: str
) -> None:
    from labelstore.cropping.crop_plan import CropPlan
    from labelstore.errors import UsageError
    from labelstore.store.layout import check_num_crops
    from labelstore.store.opening import ARRAY_FOLDERS

    one_of(crops, "--crops", ("stored", "seeded"))
    one_of(backend, "--backend", tuple(ARRAY_FOLDERS))
    if plan["num_crops"] is not None:
        check_num_crops(plan["num_crops"])
    elif plan_of is None:
        raise UsageError("--num-crops M is needed: crops of each image (or --plan-from STORE)")
    CropPlan(
        **{name: value for name, value in plan.items() if name != "num_crops" and value is not None}
    )


def _report_plan(
    store: Path,
    images: Path,
    num_crops: int | None,
    plan_of: Path | None,
    label: Callable[[Path, Progress], object],
    *,
    json: bool,
) -> None:
    from labelstore.arrays.durable import check_new_place
    from labelstore.images import ignored_words, open_images
    from labelstore.labelling.rehearsal import rehearse
    from labelstore.store.opening import exists

    if not exists(store):
        check_new_place(store)
    rehearse(store, label)
    if plan_of is not None:
        import labelstore

        with labelstore.open(plan_of, readonly=True) as other:
            num_crops = other.num_crops
    assert num_crops is not None
    folder = open_images(images)
    record: dict[str, Any] = {
        "store": store,
        "exists": store.exists(),
        "images": len(folder.keys),
        "ignored_files": dict(folder.ignored),
        "classes": len(folder.classes),
        "num_crops": num_crops,
        "crops": len(folder.keys) * num_crops,
    }
    if json:
        print_json(record)
        return
    ignored = ignored_words(folder.ignored)
    verb = "resume" if store.exists() else "make"
    print(
        f"would {verb} {store}: {record['images']:,} images of {record['classes']:,} classes, "
        f"{num_crops} crops each, {record['crops']:,} in all" + (f"; {ignored}" if ignored else "")
    )
