"""`labelstore create`: plan the crops of an image folder and label every one with a teacher."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import DryRun, Json, Store, numbers, seconds
from cli.output import print_json, say
from cli.progress import Progress
from cli.teacher_options import device_of_this_process, print_report

CROPS = "Crops"
TEACHER = "Teacher"
LABELS = "Labels"
WORK = "How it works"


def create(
    store: Store,
    images: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Image folder, one folder per class.", show_default=False),
    ],
    teacher: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="timm:NAME, torchvision:NAME, a run folder of `trainer run`, or a checkpoint.",
            rich_help_panel=TEACHER,
        ),
    ],
    num_crops: Annotated[
        int, typer.Option(metavar="M", help="Crops of each image.", rich_help_panel=CROPS)
    ],
    teacher_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Network of a checkpoint: timm:NAME or torchvision:NAME.",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    class_map: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="CSV lines `class name,teacher output`, or wnid for ImageNet folders.",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option("--temperature", "--temp", help="Of the softmax.", rich_help_panel=TEACHER),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the crop plan.", rich_help_panel=CROPS)] = 0,
    scale: Annotated[
        str,
        typer.Option(
            metavar="LOW,HIGH",
            help="Area of a crop over the image's.",
            rich_help_panel=CROPS,
        ),
    ] = "0.08,1",
    ratio: Annotated[
        str,
        typer.Option(
            metavar="LOW,HIGH",
            help="Width of a crop over its height.",
            show_default="3/4,4/3",
            rich_help_panel=CROPS,
        ),
    ] = f"{3 / 4},{4 / 3}",
    flip_prob: Annotated[
        float, typer.Option(help="Share of flipped crops.", rich_help_panel=CROPS)
    ] = 0.5,
    crops: Annotated[
        str,
        typer.Option(
            metavar="stored|seeded",
            help="Keep boxes and flips in the store, or compute them from the seed.",
            rich_help_panel=CROPS,
        ),
    ] = "stored",
    plan_name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the crop plan.", rich_help_panel=CROPS)
    ] = "plan",
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
    batch_size: Annotated[
        int, typer.Option(min=1, help="Crops per forward pass.", rich_help_panel=WORK)
    ] = 64,
    device: Annotated[
        str | None,
        typer.Option(
            help="torch device.", show_default="cuda where there is one", rich_help_panel=WORK
        ),
    ] = None,
    amp: Annotated[
        str,
        typer.Option(
            metavar="none|bf16|fp16", help="Autocast of the teacher.", rich_help_panel=WORK
        ),
    ] = "none",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Decoding threads.", show_default="one per core", rich_help_panel=WORK
        ),
    ] = None,
    images_per_shard: Annotated[
        int | None,
        typer.Option(help="Images in one commit.", show_default="by size", rich_help_panel=WORK),
    ] = None,
    crops_per_shard: Annotated[
        int | None,
        typer.Option(
            help="Crops in one file; divides M.", show_default="at most 100", rich_help_panel=WORK
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(metavar="zarr|hdf5", help="Files of a new store.", rich_help_panel=WORK),
    ] = "zarr",
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave out images that cannot be decoded, and record them.",
            rich_help_panel=WORK,
        ),
    ] = False,
    max_time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Stop cleanly after 90s, 30m, 1h30m; exit code 8 if labels are missing.",
            rich_help_panel=WORK,
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Label every crop of an image folder with a teacher; resumes or joins a store that exists.

    Any number of processes may run the same command: each takes image blocks that no other has.
    """
    from labelstore.codecs import codec_from_options

    # refused before the teacher is loaded: what needs no teacher to be seen
    codec = codec_from_options(compression, k, dtype)
    smallest, largest = numbers(scale, "--scale", "LOW", "HIGH")
    narrowest, widest = numbers(ratio, "--ratio", "LOW", "HIGH")
    max_seconds = None if max_time is None else seconds(max_time, "--max-time")
    if crops not in ("stored", "seeded"):
        raise typer.BadParameter(f"{crops!r}: choose stored or seeded.", param_hint="'--crops'")
    if dry_run:
        _report_plan(store, images, num_crops, json=json)
        return

    from labelstore.generation import label_images, load_teacher

    with Progress("labels", "crops") as progress:
        report = label_images(
            store,
            images=images,
            teacher=load_teacher(teacher, architecture=teacher_model) if teacher_model else teacher,
            codec=codec,
            num_crops=num_crops,
            seed=seed,
            scale=(smallest, largest),
            ratio=(narrowest, widest),
            flip_prob=flip_prob,
            plan_name=plan_name,
            stored_crops=crops == "stored",
            images_per_shard=images_per_shard,
            crops_per_shard=crops_per_shard,
            backend=backend,
            class_map=class_map,
            name=name,
            temperature=temperature,
            batch_size=batch_size,
            device=device or device_of_this_process(),
            autocast=amp,
            workers=workers,
            skip_bad=skip_bad,
            max_seconds=max_seconds,
            progress=progress,
            note=say,
        )
    if json:
        print_json({"store": store, **asdict(report)})
        return
    print_report(report, store)


def _report_plan(store: Path, images: Path, num_crops: int, *, json: bool) -> None:
    from labelstore.images import scan_folder
    from labelstore.schema import check_num_crops

    check_num_crops(num_crops)
    folder = scan_folder(images)
    record: dict[str, Any] = {
        "store": store,
        "exists": store.exists(),
        "images": len(folder.keys),
        "classes": len(folder.classes),
        "num_crops": num_crops,
        "crops": len(folder.keys) * num_crops,
    }
    if json:
        print_json(record)
        return
    verb = "resume" if store.exists() else "make"
    print(
        f"would {verb} {store}: {record['images']:,} images of {record['classes']:,} classes, "
        f"{num_crops} crops each, {record['crops']:,} in all"
    )
