"""`labelstore stats`: how sure the teacher is of its crops, and what the labels weigh."""

from __future__ import annotations

from typing import Annotated, Any, cast, get_args

import typer

from cli.options import Json, LabelSet, Store
from cli.output import print_json, print_table


def stats(
    store: Store,
    label_set: LabelSet = None,
    criterion: Annotated[
        str,
        typer.Option(
            metavar="max_probability|ground_truth_probability",
            help="Which probability the histogram is of.",
        ),
    ] = "max_probability",
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGESxCROPS",
            help="Also say what the same labels would weigh at this scale, for example 1281167x200.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show how sure the teacher is of its crops (FerKD Table 1) and what the labels weigh.

    Without --label-set, for every label set of the store.
    """
    import labelstore
    from labelstore import stats
    from labelstore.calibration import Criterion
    from labelstore.errors import UsageError

    allowed = get_args(Criterion)
    if criterion not in allowed:
        raise UsageError(f"--criterion {criterion}: choose {' or '.join(allowed)}")
    chosen = cast("Criterion", criterion)
    with labelstore.open(store, readonly=True) as opened:
        names = opened.label_sets if label_set is None else (label_set,)
        storage = stats.storage(opened, scale=scale)
        found = [
            (stats.summary(labels), stats.histogram(labels, criterion=chosen))
            for labels in map(opened.label_set, names)
        ]
    if json:
        record: dict[str, Any] = {"store": store, "storage": storage.to_record()}
        record["label_sets"] = [
            {**summary.to_record(), "histogram": histogram.to_record()}
            for summary, histogram in found
        ]
        print_json(record)
        return
    from cli.render_stats import render_histogram, render_storage, render_summary

    for summary, histogram in found:
        print_table(render_summary(summary))
        print_table(render_histogram(histogram))
    print_table(render_storage(storage))
