"""`labelstore create`: plan the crops of an image folder and label every one with a teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cli.field_options import option, with_options
from cli.new_store_options import CropOptions, LayoutOptions
from cli.options import IMAGES, DryRun, Json, Store
from cli.output import print_json
from cli.teacher_options import (
    WORK,
    LabelOptions,
    NewTeacherOptions,
    TeacherSource,
    WorkOptions,
    print_report,
    progress_of,
)

if TYPE_CHECKING:
    from labelstore.commit.lease_keeper import Progress
    from labelstore.images import ImageSource
    from labelstore.labelling.generate import GenerationReport


@with_options
def create(
    store: Store,
    images: Annotated[
        Path,
        option(
            metavar=IMAGES,
            help="Folder with one folder per class, .csv or .parquet list of path and class, tar shards "
            "(FILE.tar, s-{000..009}.tar), or a folder that `datasets` saved.",
        ),
    ],
    teacher: TeacherSource,
    crops: CropOptions,
    about_teacher: NewTeacherOptions,
    labels: LabelOptions,
    work: WorkOptions,
    layout: LayoutOptions,
    catalogue: Annotated[
        str | None,
        option(
            metavar="URL",
            help="Keep a new store's catalogue on a server: postgresql://HOST/DATABASE, no password in it.",
            unset="a file in the store",
            rich_help_panel=WORK,
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Label every crop of an image folder with a teacher; resumes or joins a store that exists.

    Any number of processes may run the same command, also under torchrun: each takes image blocks that no
    other has, and one of them makes the store.
    """
    # refused before torch is imported: what needs no teacher to be seen
    codec = labels.codec()
    if catalogue is not None:
        from labelstore.catalogue.server import check_server_url

        check_server_url(catalogue)

    from labelstore.arrays.durable import check_new_place
    from labelstore.images import open_images
    from labelstore.store.opening import exists

    if not exists(store):
        check_new_place(store)
    folder = open_images(images)

    from labelstore.labelling.label_images import label_images

    def label(path: Path, progress: Progress) -> GenerationReport:
        return label_images(
            path,
            images=folder,
            teacher=about_teacher.load(teacher),
            codec=codec,
            name=labels.name,
            # a dry run makes its copy in a file
            catalogue=None if dry_run else catalogue,
            **crops.arguments(),
            **vars(layout),
            **about_teacher.arguments(),
            **work.arguments(),
            progress=progress,
        )

    if dry_run:
        _report_plan(store, folder, crops, label, json=json)
        return
    with progress_of("labels", "crops") as progress:
        report = label(store, progress)
    print_report(report, store, json=json)


def _report_plan(
    store: Path,
    folder: ImageSource,
    crops: CropOptions,
    label: Callable[[Path, Progress], object],
    *,
    json: bool,
) -> None:
    from labelstore.images import ignored_words
    from labelstore.labelling.label_images import rehearse

    rehearse(store, label)
    num_crops = crops.num_crops
    if crops.plan_of is not None:
        import labelstore

        with labelstore.open(crops.plan_of, readonly=True) as other:
            num_crops = other.num_crops
    assert num_crops is not None
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
