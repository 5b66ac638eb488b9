"""Tables of `labelstore stats`, `calibrate` and `mask`: data in, what `output.print_all` prints out."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.output import number, percent, size, table
from cli.wording import spoken
from labelstore.analysis.codec_sizes import CodecTable
from labelstore.analysis.comparison import Comparisons, Distance
from labelstore.analysis.disk import Storage
from labelstore.analysis.histogram import Histogram
from labelstore.analysis.profile import Profile
from labelstore.analysis.summary import Summary
from labelstore.calibration import Choice, Preview, RegionThresholds
from labelstore.store.label_outputs import short


def render_histogram(counted: Histogram) -> RenderableType:
    """FerKD Table 1: bins, crops, ratio and aggregated ratio, beside the paper's figures where there are any."""
    notes = []
    if counted.missing:
        notes.append(f"{counted.missing:,} crops of images that were left out are not counted")
    if not counted.is_complete:
        notes.append("unfinished label set: only committed crops are counted")
    columns = {
        "range (P)": lambda row: f"[{row.low:g}, {row.high:g}{']' if row.high == 1 else ')'}",
        "crops": lambda row: f"{row.count:,}",
        "ratio": lambda row: percent(row.ratio),
        "agg. ratio": lambda row: percent(row.cumulative),
    }
    papers = {
        "FerKD ratio": lambda row: percent(row.paper_ratio),
        "FerKD agg.": lambda row: percent(row.paper_cumulative),
    }
    if any(row.paper_ratio is not None for row in counted.bins):
        columns |= papers
    return table(
        f"{counted.label_set}: {counted.num_crops:,} crops by {counted.criterion.replace('_', ' ')}",
        counted.bins,
        columns,
        caption="; ".join(notes) or None,
        dim=papers,
    )


def render_summary(of: Summary) -> RenderableType:
    """A label set in figures, one per line."""
    codec = " ".join(f"{key}={value}" for key, value in of.codec.items() if key != "name")
    rows = {
        "teacher": of.teacher,
        "compression": f"{of.codec.get('name', '')} {codec}".strip(),
        "outputs": of.outputs,
        "images": f"{of.labelled_images:,} of {of.num_images:,} labelled, {of.bad_images:,} left out",
        "crops per image": f"{of.num_crops:,}",
        "image blocks": f"{of.blocks:,} of {of.blocks_wanted:,}",
        "mean max probability": number(of.mean_max_probability),
        "mean ground-truth probability": number(of.mean_ground_truth_probability),
        "crops above 0.999": percent(of.certain_crops),
        "read from": f"{of.sampled_crops:,} crops of {of.sampled_blocks:,} image blocks",
        "labelling": f"{of.teacher_seconds:,.0f} s on {', '.join(of.devices) or 'unknown devices'}",
    }
    drawn = Table(title=Text(of.label_set), show_header=False)
    drawn.add_column(style="bold")
    for name, value in rows.items():
        drawn.add_row(Text(name), Text(value))
    return drawn


def render_preview(counted: Preview, title: str = "what each choice would do") -> RenderableType:
    """Per choice of thresholds: crops discarded, calibrated and kept, and images left without a crop."""
    by_thresholds = all(isinstance(choice.rule, RegionThresholds) for choice in counted.choices)

    def crops(region: str) -> Callable[[Choice], str]:
        def cell(choice: Choice) -> str:
            count = getattr(choice.counts, region)
            return f"{count:,}\n{percent(choice.counts.share(count))}"

        return cell

    drawn = table(
        f"{counted.label_set}: {title}",
        counted.choices,
        {
            "choice": lambda choice: choice.title,
            "low / middle / top" if by_thresholds else "rule": lambda choice: (
                choice.rule.describe()
            ),
            "too hard": crops("too_hard"),
            "too easy": crops("too_easy"),
            "calibrated": crops("hard"),
            "kept": crops("important"),
            "usable": crops("usable"),
            "images left out": lambda choice: (
                f"{choice.counts.images_without_crop:,}\nof {choice.counts.images:,}"
            ),
        },
        caption=None
        if counted.is_complete
        else "unfinished label set: only committed crops are counted",
    )
    notes = (
        Text(f"{choice.title}: {spoken(note)}", style="yellow")
        for choice in counted.choices
        for note in choice.notes
    )
    return Group(drawn, *notes)


def render_profile(of: Profile) -> RenderableType:
    """Means and spreads over all crops; shares; sizes of the images."""
    of_blocks = f" ({of.blocks} of {of.blocks_committed} image blocks)"
    part = "" if of.blocks == of.blocks_committed else of_blocks
    sizes = ", ".join(
        f"{name} {least:,} to {most:,} px, median {median:,}"
        for name, (least, median, most) in of.sizes.items()
    )
    return Group(
        table(
            f"{of.label_set}: {of.crops:,} crops{part}",
            of.measures,
            {"measure": lambda each: each.name.replace("_", " ")}
            | {name: _figure(name) for name in ("mean", "std", "least", "most")},
        ),
        Text(
            f"teacher {of.teacher} at temperature {of.temperature:g}: top-1 {percent(of.top1)}, "
            f"top-5 {percent(of.top5)} of the crops; flipped {percent(of.flip_rate)}"
        ),
        Text(f"images: {sizes}"),
    )


def render_classes(of: Profile) -> RenderableType:
    """One row per class, the ones that the teacher agrees with least first."""
    return table(
        f"{of.label_set}: {len(of.classes):,} classes",
        sorted(of.classes, key=lambda row: (row.top1 is None, row.top1, row.name)),
        {
            "class": lambda row: short(row.title) or "no ground truth",
            "images": _figure("images", ","),
            "crops": _figure("crops", ","),
            "max p": _figure("max_probability"),
            "ground-truth p": _figure("ground_truth_probability"),
            "entropy": _figure("entropy"),
            "area": _figure("area"),
            "top-1": lambda row: percent(row.top1),
            "top-5": lambda row: percent(row.top5),
        },
    )


def render_disagreements(of: Comparisons) -> RenderableType:
    """One row per pair of label sets, and a line for each pair that cannot be compared."""

    def name(which: int) -> Callable[[Distance], str]:
        def cell(pair: Distance) -> str:
            own, teacher = pair.label_sets[which], pair.teachers[which]
            return own if own == teacher else f"{own} ({teacher})"

        return cell

    drawn = table(
        "how far label sets disagree, over the crops that both label",
        of.pairs,
        {
            "first": name(0),
            "second": name(1),
            "crops": _figure("num_crops", ","),
            "same top-1": lambda pair: number(
                None if pair.top1_agreement is None else 100 * pair.top1_agreement, ".2f", " %"
            ),
            "KL": _figure("kl"),
            "KL reversed": _figure("kl_reversed"),
            "JS": _figure("js"),
            "worst JS": _figure("js_worst"),
        },
        left=2,
        caption="divergences are means in nats: KL(first || second), the reverse, Jensen-Shannon (at most 0.693)",
    )
    return Group(drawn, *(Text(f"not compared: {why}") for why in of.refused))


def render_storage(of: Storage) -> RenderableType:
    """Bytes by array, label sets beside FKD's files, and FKD Table 2 at the scale asked for."""
    images, crops = of.scale
    scale = f"{images:,} x {crops:,}"
    arrays = table(
        f"{of.num_images:,} images x {of.num_crops:,} crops",
        of.arrays,
        {
            "array": lambda row: f"{row.group}/{row.array}",
            "dtype": attrgetter("dtype"),
            "raw B/crop": _figure("raw_per_crop", ".2f"),
            "B/crop": _figure("disk_per_crop", ".2f"),
            "on disk": lambda row: size(row.disk_bytes),
            f"at {scale}": lambda row: size(row.scaled_bytes),
        },
        left=2,
    )
    rest = Text(
        f"arrays {size(of.arrays_bytes)}, their metadata {size(of.metadata_bytes)}, "
        f"catalogue {size(of.catalogue_bytes)}"
    )
    label_sets = table(
        f"beside FKD's files ({crops:,} crops each)",
        of.label_sets,
        {
            "label set": attrgetter("label_set"),
            "compression": attrgetter("codec"),
            "labels B/crop": _figure("labels_per_crop", ".2f"),
            "boxes, flips B/crop": _figure("boxes_per_crop", ".2f"),
            "together B/crop": _figure("total_per_crop", ".2f"),
            "FKD payload B/crop": lambda row: number(
                row.fkd.payload_per_crop if row.fkd else None, ","
            ),
            "FKD on disk B/crop": lambda row: number(
                row.fkd.file_bytes_per_crop if row.fkd else None, ".1f"
            ),
            "FKD / ours": _figure("ratio", ".1f", "x"),
        },
        left=2,
    )
    kinds = table(
        f"FKD Table 2 at {scale}",
        of.kinds,
        {
            "kind": attrgetter("title"),
            "numbers/crop": _figure("dimensions", ","),
            "calculation": lambda row: size(row.table_bytes),
            "FKD files": lambda row: size(row.disk_bytes),
            "files B/crop": _figure("file_bytes_per_crop", ",.1f"),
            "paper, 1.2 M x 200": lambda row: row.paper or "-",
        },
        caption="calculation: 4 bytes x numbers per crop; files: 1600 + M x (payload + high bytes) each; "
        "the paper's GB are 2^30 bytes",
    )
    return Group(arrays, rest, *([label_sets] if of.label_sets else []), kinds)


def render_codec_table(of: CodecTable) -> RenderableType:
    """Every codec: predicted and measured bytes beside FKD's calculation and files, labels with boxes and flips."""
    images, crops = of.scale

    def starred(text: Callable[[Any], str]) -> Callable[[Any], str]:
        return lambda row: text(row) + ("*" if row.basis == "raw" else "")

    return table(
        f"FKD Table 2 with these labels, at {images:,} x {crops:,}",
        of.rows,
        {
            "kind": attrgetter("kind"),
            "dtype": lambda row: row.dtype or "-",
            "labels B/crop": starred(_figure("labels_per_crop", ",.2f")),
            "together B/crop": starred(
                lambda row: f"{row.labels_per_crop + (row.crops_per_crop or 0):,.2f}"
            ),
            "predicted": starred(lambda row: size(row.predicted_bytes)),
            "measured B/crop": _figure("measured_per_crop", ".2f"),
            "measured": lambda row: size(row.measured_bytes),
            "FKD calculation": lambda row: size(row.fkd_table_bytes),
            "FKD files": lambda row: size(row.fkd_disk_bytes),
            "paper": lambda row: row.paper or "-",
        },
        left=2,
        caption=f"predicted from {of.sampled_crops:,} crops of {of.source}, encoded and compressed; * (in part) "
        "bytes before compression, since that label set does not keep enough. Labels with boxes and flips; FKD's "
        "calculation is 4 bytes per number, its files as its generator writes them; the paper's GB are 2^30 bytes",
    )


def _figure(name: str, form: str = ".4f", end: str = "") -> Callable[[object], str]:
    """The cell of a number of a row, by its name."""
    return lambda row: number(getattr(row, name), form, end)
