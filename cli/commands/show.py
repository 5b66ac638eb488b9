"""`labelstore show`: one image's hardest and easiest crops, as a table or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import IMAGES, Json, LabelSet, Store
from cli.output import print_json, print_table, say
from cli.picture_output import check_picture, write_picture

if TYPE_CHECKING:
    from labelstore.report import ShownCrop


def show(
    store: Store,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Key, or number of the image row.")],
    label_set: LabelSet = None,
    count: Annotated[int, typer.Option(help="Crops of each kind.")] = 3,
    top: Annotated[int, typer.Option(help="Classes of each crop.")] = 5,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a picture there; needs --images.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar=IMAGES, help="What the store was made from.")
    ] = None,
    json: Json = False,
) -> None:
    """Show an image's hardest and easiest crops with what the teacher says of them (FerKD Fig. 3 and 9)."""
    import labelstore
    from labelstore import report
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
        found = report.shown_crops(labels, int(row), count=count, top=top)
        key = str(opened.image_columns["key"][row])
        names, titles = opened.class_names, labels.class_titles
        truth = int(opened.image_columns["class_id"][row])
        due = opened.image_digest(int(row))
    name, shown = (names[truth], titles[truth]) if 0 <= truth < len(names) else ("none", "none")
    # before anything is printed: the image may not be there
    figure = None
    if images is not None and out is not None:
        try:
            figure = report.draw_image(
                file_finder(images)(key),
                found,
                title=f"{key} ({short(shown)})",
                due=due,
            )
        except FileNotFoundError:
            raise RejectedInput(
                f"no image {key} in {images}: give what the store was made from"
            ) from None
    if json:
        crops = [crop.to_record() for crop in found]
        about = {"image": int(row), "key": key, "class": name, "class_name": shown}
        print_json({"store": store, **about, "crops": crops})
    else:
        _print_crops(key, shown, found)
    if out is not None and figure is not None:
        write_picture(figure, out)
        say(f"wrote {out}")


def _print_crops(key: str, name: str, found: Sequence[ShownCrop]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from labelstore.store.label_outputs import short

    table = Table(title=escape(f"{key}: ground truth {name}"), title_justify="left")
    for column in (
        "",
        "crop",
        "top, left, height, width",
        "flip",
        "max",
        "the teacher's first classes",
    ):
        table.add_column(column, justify="right" if column in ("crop", "max") else "left")
    for crop in found:
        box = f"{crop.top}, {crop.left}, {crop.height}, {crop.width}"
        words = "  ".join(f"{escape(short(name, 24))} {value:.3f}" for name, value in crop.classes)
        flip = "yes" if crop.flip else ""
        table.add_row(crop.kind, str(crop.crop), box, flip, f"{crop.max_probability:.3f}", words)
    print_table(table)
