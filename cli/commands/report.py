"""`labelstore report`: one HTML file that shows a store in any browser, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import IMAGES, Dask, Json, LabelSet, Processes, Seed, Store
from cli.output import print_json, say, size


def report(
    store: Store,
    out: Annotated[Path, typer.Option(metavar="FILE", help="HTML file to write.")] = Path(
        "report.html"
    ),
    images: Annotated[
        Path | None,
        typer.Option(metavar=IMAGES, help="What the store was made from, for thumbnails."),
    ] = None,
    label_set: LabelSet = None,
    mask: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Also show what this mask does; sets the sliders."),
    ] = None,
    sample: Annotated[
        int, typer.Option(metavar="CROPS", help="Crops behind the figures per class and the plots.")
    ] = 200_000,
    all_crops: Annotated[
        bool,
        typer.Option(
            "--all", help="Count all crops also of a label set with more than 40 million."
        ),
    ] = False,
    seed: Seed = 0,
    workers: Processes = None,
    dask: Dask = None,
    json: Json = False,
) -> None:
    """Write one HTML file with what a store holds, how sure the teacher is and what a calibration would do.

    It needs no server and no network. Counts are over all crops, of a very large store over a part; what is a sample
    says so.
    """
    import labelstore
    from labelstore.blocks.block_map import block_map
    from labelstore.report import write_page
    from labelstore.report.page import COUNTED
    from labelstore.report.shell import check_page

    check_page(out)
    with (
        labelstore.open(store, readonly=True) as opened,
        block_map(workers=workers, dask=dask) as map_blocks,
    ):
        page = write_page(
            opened,
            out,
            label_set=label_set,
            mask=mask,
            images=images,
            sample=sample,
            counted=None if all_crops else COUNTED,
            seed=seed,
            map_blocks=map_blocks,
        )
    if json:
        print_json(page.to_record())
        return
    print(f"wrote {out}, {size(page.bytes)}: {page.crops:,} crops of {page.label_set}")
    if page.counted_crops < page.crops:
        say(
            f"Table 1 and thresholds are counted over {page.counted_crops:,} crops: --all counts all"
        )
    if page.sampled_crops < page.crops:
        say(f"figures per class are from a sample of {page.sampled_crops:,} crops")
