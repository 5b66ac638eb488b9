"""Commands that draw: `labelstore show` one image, `plot` a label set, `report` a whole store as a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.field_options import option, with_options
from cli.file_output import check_picture, write_picture
from cli.output import answer, print_all, print_json, say, size, table
from cli.shared_options import IMAGES, BlockOptions, Json, LabelSet, Seed, Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from labelstore.report import ShownCrop


@with_options
def show(
    store: Store,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Key, or number of the image row.")],
    label_set: LabelSet = None,
    count: Annotated[int, option(help="Crops of each kind.")] = 3,
    top: Annotated[int, option(help="Classes of each crop.")] = 5,
    out: Annotated[
        Path | None, option(metavar="FILE", help="Draw a picture there; needs --images.")
    ] = None,
    images: Annotated[
        Path | None, option(metavar=IMAGES, help="What the store was made from.")
    ] = None,
    json: Json = False,
) -> None:
    """Show an image's hardest and easiest crops with what the teacher says of them (FerKD Fig. 3 and 9)."""
    import labelstore
    from labelstore import report as pictures
    from labelstore.errors import RejectedInput, UsageError
    from labelstore.images import file_finder
    from labelstore.store.label_outputs import short

    if out is not None:
        check_picture(out)
        if images is None:
            raise UsageError(
                "--out draws the image itself: give what the store was made from with --images"
            )
    with labelstore.open(store, readonly=True) as opened:
        labels = opened.label_set(label_set)
        (row,) = opened.image_rows([int(image)] if image.isdecimal() else [image])
        crops = pictures.shown_crops(labels, int(row), count=count, top=top)
        key = str(opened.image_columns["key"][row])
        names, titles = opened.class_names, labels.class_titles
        truth = int(opened.image_columns["class_id"][row])
        digest = opened.image_digest(int(row))
    name, title = (names[truth], titles[truth]) if 0 <= truth < len(names) else ("none", "none")
    # before anything is printed: the image may not be there
    figure = None
    if images is not None and out is not None:
        try:
            figure = pictures.draw_image(
                file_finder(images)(key), crops, title=f"{key} ({short(title)})", due=digest
            )
        except FileNotFoundError:
            raise RejectedInput(
                f"no image {key} in {images}: give what the store was made from"
            ) from None
    record = {"store": store, "image": int(row), "key": key, "class": name, "class_name": title}
    answer(
        record | {"crops": [crop.to_record() for crop in crops]},
        _crop_table(f"{key}: ground truth {title}", crops),
        json=json,
    )
    if out is not None and figure is not None:
        write_picture(figure, out)
        say(f"wrote {out}")


def _crop_table(title: str, crops: Sequence[ShownCrop]) -> Table:
    from labelstore.store.label_outputs import short

    return table(
        title,
        crops,
        {
            "": lambda crop: crop.kind,
            "crop": lambda crop: str(crop.crop),
            "top, left, height, width": lambda crop: (
                f"{crop.top}, {crop.left}, {crop.height}, {crop.width}"
            ),
            "flip": lambda crop: "yes" if crop.flip else "",
            "max": lambda crop: f"{crop.max_probability:.3f}",
            "the teacher's first classes": lambda crop: "  ".join(
                f"{short(name, 24)} {value:.3f}" for name, value in crop.classes
            ),
        },
        left=6,
        right=("crop", "max"),
        title_justify="left",
    )


@with_options
def plot(
    store: Store,
    name: Annotated[
        str,
        typer.Argument(help="histogram, cumulative, centres, heatmap, area, classes or regions."),
    ],
    out: Annotated[
        Path | None, option(metavar="FILE", help="Picture to write.", unset="NAME.png")
    ] = None,
    label_set: LabelSet = None,
    mask: Annotated[str | None, option(metavar="NAME", help="Mask, for the plot regions.")] = None,
    sample: Annotated[
        int, option(metavar="CROPS", help="Crops of a picture that shows single ones.")
    ] = 20_000,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Draw a label set: how sure the teacher is, where the crops lie, what a mask does (FerKD Fig. 1 and 2)."""
    import labelstore
    from labelstore import report as pictures

    path = out or Path(f"{name}.png")
    check_picture(path)
    with labelstore.open(store, readonly=True) as opened:
        labels = opened.label_set(label_set)
        figure = pictures.plot(labels, name, mask=mask, sample=sample, seed=seed)
    write_picture(figure, path)
    answer({"store": store, "plot": name, "out": path}, f"wrote {path}", json=json)


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """The contents of a page."""

    out: Annotated[Path, option(metavar="FILE")] = Path("report.html")
    """HTML file to write."""
    images: Annotated[Path | None, option(metavar=IMAGES)] = None
    """What the store was made from, for thumbnails."""
    label_set: LabelSet = None
    mask: Annotated[str | None, option(metavar="NAME")] = None
    """Also show what this mask does; sets the sliders."""
    sample: Annotated[int, option(metavar="CROPS")] = 200_000
    """Crops behind the figures per class and the plots."""
    all_crops: Annotated[bool, option("--all")] = False
    """Count all crops also of a label set with more than 40 million."""
    seed: Seed = 0


@with_options
def report(store: Store, wanted: PageOptions, blocks: BlockOptions, json: Json = False) -> None:
    """Write one HTML file with what a store holds, how sure the teacher is and what a calibration would do.

    It needs no server and no network. Counts are over all crops, of a very large store over a part; what is a sample
    says so.
    """
    import labelstore
    from labelstore.report import write_page
    from labelstore.report.page import COUNTED
    from labelstore.report.shell import check_page

    check_page(wanted.out)
    with labelstore.open(store, readonly=True) as opened, blocks.mapped() as map_blocks:
        page = write_page(
            opened,
            wanted.out,
            label_set=wanted.label_set,
            mask=wanted.mask,
            images=wanted.images,
            sample=wanted.sample,
            counted=None if wanted.all_crops else COUNTED,
            seed=wanted.seed,
            map_blocks=map_blocks,
        )
    if json:
        print_json(page.to_record())
        return
    print_all(f"wrote {wanted.out}, {size(page.bytes)}: {page.crops:,} crops of {page.label_set}")
    if page.counted_crops < page.crops:
        say(
            f"Table 1 and thresholds are counted over {page.counted_crops:,} crops: --all counts all"
        )
    if page.sampled_crops < page.crops:
        say(f"figures per class are from a sample of {page.sampled_crops:,} crops")
