"""`labelstore stats`: how sure the teacher is of its crops, and what the labels weigh."""

from __future__ import annotations

from typing import Annotated, Any, cast, get_args

import typer

from cli.frame_output import Format, Out, chosen_format
from cli.options import Dask, Json, LabelSet, Processes, Store
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
    storage: Annotated[
        bool,
        typer.Option(
            "--storage",
            help="FKD Table 2 for this store: what every codec would take, predicted from a sample of its own labels.",
        ),
    ] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Also entropy, kept mass, agreement with the ground truth, boxes, flips, over all crops.",
        ),
    ] = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also the same by class: one row per class.")
    ] = False,
    disagreement: Annotated[
        bool,
        typer.Option(
            "--disagreement",
            help="Also how far every two label sets on one plan disagree: top-1, KL, Jensen-Shannon.",
        ),
    ] = False,
    sample: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Share of the image blocks that --all, --per-class and --disagreement read: to the nearest block, "
            "always the same ones, spread evenly.",
        ),
    ] = 1.0,
    workers: Processes = None,
    dask: Dask = None,
    format: Format = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Show how sure the teacher is of its crops (FerKD Table 1) and what the labels weigh.

    Without --label-set, for every label set of the store. With --storage, sizes only. With --format csv, parquet
    or md the rows are those of Table 1, or with --all the measures, with --per-class the classes, with
    --disagreement the pairs of label sets.
    """
    import labelstore
    from labelstore.analysis.codec_sizes import codec_table
    from labelstore.analysis.comparison import compare_all
    from labelstore.analysis.disk import storage as bytes_on_disk
    from labelstore.analysis.histogram import histogram as count_bins
    from labelstore.analysis.profile import profile as measure_crops
    from labelstore.analysis.summary import summary as summarize
    from labelstore.blocks.block_map import block_map
    from labelstore.calibration import Criterion
    from labelstore.errors import UsageError

    form = chosen_format(format, out, json=json)
    allowed = get_args(Criterion)
    if criterion not in allowed:
        raise UsageError(f"--criterion {criterion}: choose {' or '.join(allowed)}")
    chosen = cast("Criterion", criterion)
    with (
        labelstore.open(store, readonly=True) as opened,
        block_map(workers=workers, dask=dask) as map_blocks,
    ):
        names = opened.label_sets if label_set is None else (label_set,)
        weights = bytes_on_disk(opened, scale=scale)
        codecs = codec_table(opened, label_set, scale=scale) if storage else None
        found = [
            (
                summarize(labels, map_blocks=map_blocks),
                count_bins(labels, criterion=chosen, map_blocks=map_blocks),
            )
            for labels in map(opened.label_set, names)
            if codecs is None
        ]
        profiles = [
            measure_crops(labels, share=sample, map_blocks=map_blocks)
            for labels in map(opened.label_set, names)
            if everything or per_class
        ]
        compared = (
            compare_all(opened, label_set=label_set, share=sample, map_blocks=map_blocks)
            if disagreement
            else None
        )
    if form == "json" and out is None:
        record: dict[str, Any] = {"store": store, "storage": weights.to_record()}
        record["label_sets"] = [
            {**summary.to_record(), "histogram": histogram.to_record()}
            for summary, histogram in found
        ]
        if codecs is not None:
            record["codecs"] = codecs.to_record()
        if compared is not None:
            record["disagreement"] = compared.to_record()
        for entry, profile in zip(record["label_sets"], profiles, strict=False):
            entry["profile"] = profile.to_record(per_class=per_class)
        print_json(record)
        return
    if form != "table" or out is not None:
        from cli.frame_output import frame_reader, write_rows
        from cli.stats_frames import class_rows, histogram_rows, measure_rows, pair_rows

        if compared is not None:
            frame = pair_rows(compared)
        elif not profiles:
            frame = histogram_rows([histogram for _, histogram in found])
        else:
            frame = class_rows(profiles) if per_class else measure_rows(profiles)
        write_rows(frame_reader(frame), form, out)
        return
    from cli import render_stats

    for summary, histogram in found:
        print_table(render_stats.render_summary(summary))
        print_table(render_stats.render_histogram(histogram))
    for profile in profiles:
        print_table(render_stats.render_profile(profile))
        if per_class:
            print_table(render_stats.render_classes(profile))
    if compared is not None:
        print_table(render_stats.render_disagreements(compared))
    print_table(render_stats.render_storage(weights))
    if codecs is not None:
        print_table(render_stats.render_codec_table(codecs))
