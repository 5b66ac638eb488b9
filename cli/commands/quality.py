"""`labelstore quality`: how far kinds of labels are from each other (FKD Fig. 3)."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.frame_output import Format, Out, chosen_format, frame_reader, write_rows
from cli.options import Json, Store
from cli.output import print_json


def quality(
    store: Store,
    label_set: Annotated[
        str | None,
        typer.Option(
            "--label-set", metavar="NAME,NAME", help="Label sets to compare; all if not given."
        ),
    ] = None,
    per_class: Annotated[
        bool,
        typer.Option("--per-class", help="One row per pair and class, as FKD Fig. 3 draws them."),
    ] = False,
    sample: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Share of the image blocks to look at: to the nearest block, always the same ones, spread evenly.",
        ),
    ] = 1.0,
    format: Format = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Show the cross-entropy between label sets, and to the ground truth, over equal crops (FKD Fig. 3)."""
    import pandas as pd

    import labelstore
    from labelstore.analysis.comparison import compare

    form = chosen_format(format, out, json=json)
    with labelstore.open(store, readonly=True) as opened:
        names = opened.label_sets if label_set is None else label_set.split(",")
        label_sets = [opened.label_set(name.strip()) for name in names]
        found = compare(label_sets, ground_truth=True, js=False, share=sample)
    if json:
        classes = {"classes": found.by_class().to_dict("records")} if per_class else {}
        print_json({"store": store} | found.to_record() | classes)
        return
    frame = found.by_class() if per_class else pd.DataFrame(found.to_record()["pairs"])
    title = f"-sum P_b log P_a over {int(found.crops.sum()):,} crops, nats"
    write_rows(frame_reader(frame), form, out, title=title)
