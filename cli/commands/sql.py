"""`labelstore sql`: one SELECT over the catalogue's tables and the crops."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.frame_output import Format, Out, chosen_format, write_rows
from cli.options import Json, LabelSet, Store


def sql(
    store: Store,
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="QUERY", help="One SELECT; without it, the tables and their columns."
        ),
    ] = None,
    label_set: LabelSet = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Mask for the column region; not needed if there is only one."
        ),
    ] = None,
    memory_limit: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Memory of the query; the rest goes to a temporary folder."
        ),
    ] = "2GB",
    format: Format = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Answer one SELECT over the catalogue's tables and the crops, which are read as the query needs them.

    Tables: images, classes, teachers, plans, label_sets, masks, shards, runs, results; crops of the label set
    (--label-set where there are several), and crops_NAME of each. Nothing can be written, and no other file read.
    """
    import labelstore
    from cli.output import print_fields, print_json
    from labelstore.analysis.sql import sql_batches, sql_columns

    form = chosen_format(format, out, json=json)
    with labelstore.open(store, readonly=True) as opened:
        if query is None:
            tables = sql_columns(opened, label_set=label_set)
            if json:
                print_json(tables)
            else:
                print_fields({name: ", ".join(names) for name, names in tables.items()})
            return
        with sql_batches(
            opened, query, label_set=label_set, mask=mask, memory_limit=memory_limit
        ) as reader:
            write_rows(reader, form, out)
