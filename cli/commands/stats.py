"""`labelstore stats`: how sure the teacher is of its crops, and what the labels weigh."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cli.field_options import option, with_options
from cli.file_output import RowOptions
from cli.output import print_all, print_json
from cli.shared_options import BlockOptions, Criterion, LabelSet, Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from labelstore.analysis.comparison import Comparisons
    from labelstore.analysis.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures to take."""

    criterion: Criterion = "max_probability"
    """Which probability the histogram is of."""
    scale: Annotated[str | None, option(metavar="IMAGESxCROPS")] = None
    """Also say what the same labels would weigh at this scale, for example 1281167x200."""
    storage: bool = False
    """FKD Table 2 for this store: what every codec would take, predicted from a sample of its own labels."""
    everything: Annotated[bool, option("--all")] = False
    """Also entropy, kept mass, agreement with the ground truth, boxes, flips, over all crops."""
    per_class: bool = False
    """Also the same by class: one row per class."""
    disagreement: bool = False
    """Also how far every two label sets on one plan disagree: top-1, KL, Jensen-Shannon."""
    sample: Annotated[float, option(metavar="SHARE")] = 1.0
    """Share of the image blocks that --all, --per-class and --disagreement read: to the nearest block, always the same
    ones, spread evenly."""


@with_options
def stats(
    store: Store,
    label_set: LabelSet = None,
    *,
    wanted: Measures,
    blocks: BlockOptions,
    rows: RowOptions,
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
    from labelstore.analysis.histogram import histogram
    from labelstore.analysis.profile import profile
    from labelstore.analysis.summary import summary

    with labelstore.open(store, readonly=True) as opened, blocks.mapped() as map_blocks:
        names = opened.label_sets if label_set is None else (label_set,)
        all_labels = [opened.label_set(name) for name in names]
        weights = bytes_on_disk(opened, scale=wanted.scale)
        codecs = codec_table(opened, label_set, scale=wanted.scale) if wanted.storage else None
        counted = [
            (
                summary(labels, map_blocks=map_blocks),
                histogram(labels, criterion=wanted.criterion, map_blocks=map_blocks),
            )
            for labels in all_labels
            if codecs is None
        ]
        profiles = [
            profile(labels, share=wanted.sample, map_blocks=map_blocks)
            for labels in all_labels
            if wanted.everything or wanted.per_class
        ]
        compared = None
        if wanted.disagreement:
            compared = compare_all(
                opened, label_set=label_set, share=wanted.sample, map_blocks=map_blocks
            )
    if rows.form == "json" and rows.out is None:
        record: dict[str, Any] = {"store": store, "storage": weights.to_record()}
        record["label_sets"] = [
            {**each.to_record(), "histogram": bins.to_record()} for each, bins in counted
        ]
        if codecs is not None:
            record["codecs"] = codecs.to_record()
        if compared is not None:
            record["disagreement"] = compared.to_record()
        for entry, each in zip(record["label_sets"], profiles, strict=False):
            entry["profile"] = each.to_record(per_class=wanted.per_class)
        print_json(record)
    elif rows.form != "table" or rows.out is not None:
        if compared is not None:
            frame = _pairs(compared)
        elif profiles:
            frame = _classes(profiles) if wanted.per_class else _measures(profiles)
        else:
            frame = _frame(
                {"label_set": bins.label_set, "criterion": bins.criterion, **asdict(row)}
                for _, bins in counted
                for row in bins.bins
            )
        rows.write(frame)
    else:
        from cli import render_stats

        for summed, bins in counted:
            print_all(render_stats.render_summary(summed), render_stats.render_histogram(bins))
        for profiled in profiles:
            print_all(render_stats.render_profile(profiled))
            if wanted.per_class:
                print_all(render_stats.render_classes(profiled))
        if compared is not None:
            print_all(render_stats.render_disagreements(compared))
        print_all(render_stats.render_storage(weights))
        if codecs is not None:
            print_all(render_stats.render_codec_table(codecs))


def _frame(rows: Any) -> pd.DataFrame:  # noqa: ANN401 - mappings
    import pandas as pd

    return pd.DataFrame(list(rows))


def _measures(profiles: Sequence[Profile]) -> pd.DataFrame:
    """One row per label set and figure: mean, standard deviation, least, most; of a share only its mean."""
    rows: list[dict[str, object]] = []
    for profile in profiles:
        of_all = {"label_set": profile.label_set}
        for measure in profile.measures:
            figures = asdict(measure)
            del figures["edges"], figures["counts"]
            rows.append(of_all | {"measure": figures.pop("name"), **figures})
        for name in ("top1", "top5", "flip_rate"):
            mean = getattr(profile, name)
            rows.append(of_all | {"measure": name, "crops": profile.crops, "mean": mean})
    return _frame(rows)


def _classes(profiles: Sequence[Profile]) -> pd.DataFrame:
    """One row per label set and class."""
    return _frame(
        {"label_set": profile.label_set, **asdict(row)}
        for profile in profiles
        for row in profile.classes
    )


def _pairs(compared: Comparisons) -> pd.DataFrame:
    """One row per pair of label sets: the two names and teachers first, then every measure."""
    rows = []
    for pair in compared.pairs:
        record = asdict(pair)
        names = zip(
            ("first", "second", "first_teacher", "second_teacher"),
            (*record.pop("label_sets"), *record.pop("teachers")),
            strict=True,
        )
        rows.append(dict(names) | record)
    return _frame(rows)
