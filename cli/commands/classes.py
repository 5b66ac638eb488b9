"""`labelstore classes`: which output of a label set is which class of the images, shown or said."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.frame_output import Format, Out, chosen_format, frame_reader, write_rows
from cli.options import DryRun, Json, LabelSet, Store
from cli.output import print_json, say


def classes(
    store: Store,
    label_set: LabelSet = None,
    class_map: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Record which output is which class: CSV lines `class name,output`, or wnid for ImageNet folders.",
        ),
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Record names of the teacher's outputs: one per line, or imagenet-1k, -12k, -21k, -22k.",
        ),
    ] = None,
    embedding: Annotated[
        bool,
        typer.Option(
            "--embedding", help="Record that the outputs are no classes but an embedding."
        ),
    ] = False,
    dry_run: DryRun = False,
    format: Format = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Show the classes of the images, their names and outputs in a label set; record them where nothing says it."""
    import labelstore
    from labelstore.labelling.stating import class_table, state_classes

    form = chosen_format(format, out, json=json)
    states = class_map is not None or class_names is not None or embedding
    with labelstore.open(store, readonly=dry_run or not states) as opened:
        labels = opened.label_set(label_set)
        if states and not dry_run:
            labels = state_classes(
                labels, class_map=class_map, class_names=class_names, embedding=embedding
            )
        table = class_table(labels)
        what = labels.outputs.describe(labels.num_classes)
        record = {"store": store, "label_set": labels.name, "outputs_are": labels.outputs.kind}
    if json:
        print_json({**record, "outputs": what, "classes": table.to_dict("records")})
        return
    write_rows(frame_reader(table), form, out, title=f"{labels.name}: {what}")
    if states and dry_run:
        say("nothing was recorded: a dry run")
