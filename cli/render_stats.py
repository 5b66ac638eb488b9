"""Tables of `labelstore stats`, `calibrate` and `mask`: data in, rich renderables out."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.output import drawn, number, percent, size
from cli.wording import spoken
from labelstore.analysis.codec_sizes import CodecTable
from labelstore.analysis.comparison import Comparisons
from labelstore.analysis.disk import Storage
from labelstore.analysis.histogram import Histogram
from labelstore.analysis.profile import Profile
from labelstore.analysis.summary import Summary
from labelstore.calibration import Preview, RegionThresholds
from labelstore.store.label_outputs import short


def render_histogram(found: Histogram) -> RenderableType:
    """FerKD Table 1: bins, crops, ratio and aggregated ratio, beside the paper's figures where there are any."""
    notes = []
    if found.missing:
        notes.append(f"{found.missing:,} crops of images that were left out are not counted")
    if not found.is_complete:
        notes.append("unfinished label set: only committed crops are counted")
    rows = [
        (
            f"[{row.low:g}, {row.high:g}{']' if row.high == 1 else ')'}",
            f"{row.count:,}",
            *map(percent, (row.ratio, row.cumulative, row.paper_ratio, row.paper_cumulative)),
        )
        for row in found.bins
    ]
    papers = ("FerKD ratio", "FerKD agg.")
    columns: tuple[str, ...] = ("range (P)", "crops", "ratio", "agg. ratio", *papers)
    if all(row.paper_ratio is None for row in found.bins):
        columns = columns[:-2]
    return drawn(
        f"{found.label_set}: {found.num_crops:,} crops by {found.criterion.replace('_', ' ')}",
        columns,
        [row[: len(columns)] for row in rows],
        caption="; ".join(notes) or None,
        dim=papers,
    )


def render_summary(found: Summary) -> RenderableType:
    """A label set in figures, one per line."""
    table = Table(title=Text(found.label_set), show_header=False)
    table.add_column(style="bold")
    table.add_column()
    codec = " ".join(f"{key}={value}" for key, value in found.codec.items() if key != "name")
    rows = {
        "teacher": found.teacher,
        "compression": f"{found.codec.get('name', '')} {codec}".strip(),
        "outputs": found.outputs,
        "images": f"{found.labelled_images:,} of {found.num_images:,} labelled, {found.bad_images:,} left out",
        "crops per image": f"{found.num_crops:,}",
        "image blocks": f"{found.blocks:,} of {found.blocks_wanted:,}",
        "mean max probability": number(found.mean_max_probability),
        "mean ground-truth probability": number(found.mean_ground_truth_probability),
        "crops above 0.999": percent(found.certain_crops),
        "read from": f"{found.sampled_crops:,} crops of {found.sampled_blocks:,} image blocks",
        "labelling": f"{found.teacher_seconds:,.0f} s on {', '.join(found.devices) or 'unknown devices'}",
    }
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def render_preview(found: Preview, title: str = "what each choice would do") -> RenderableType:
    """Per choice of thresholds: crops discarded, calibrated and kept, and images left without a crop."""
    by_thresholds = all(isinstance(choice.rule, RegionThresholds) for choice in found.choices)
    rows = []
    for choice in found.choices:
        counts = choice.counts
        of_crops = (
            counts.too_hard,
            counts.too_easy,
            counts.hard,
            counts.important,
            counts.usable,
        )
        rows.append(
            (
                choice.title,
                choice.rule.describe(),
                *(f"{count:,}\n{percent(counts.share(count))}" for count in of_crops),
                f"{counts.images_without_crop:,}\nof {counts.images:,}",
            )
        )
    rule = "low / middle / top" if by_thresholds else "rule"
    table = drawn(
        f"{found.label_set}: {title}",
        ("choice", rule, "too hard", "too easy", "calibrated", "kept", "usable", "images left out"),
        rows,
        caption=None
        if found.is_complete
        else "unfinished label set: only committed crops are counted",
    )
    notes = (
        Text(f"{choice.title}: {spoken(note)}", style="yellow")
        for choice in found.choices
        for note in choice.notes
    )
    return Group(table, *notes)


def render_profile(found: Profile) -> RenderableType:
    """Means and spreads over all crops; shares; sizes of the images."""
    of_blocks = f" ({found.blocks} of {found.blocks_committed} image blocks)"
    part = "" if found.blocks == found.blocks_committed else of_blocks
    sizes = ", ".join(
        f"{name} {least:,} to {most:,} px, median {median:,}"
        for name, (least, median, most) in found.sizes.items()
    )
    return Group(
        drawn(
            f"{found.label_set}: {found.crops:,} crops{part}",
            ("measure", "mean", "std", "least", "most"),
            [
                (
                    each.name.replace("_", " "),
                    *map(number, (each.mean, each.std, each.least, each.most)),
                )
                for each in found.measures
            ],
        ),
        Text(
            f"teacher {found.teacher} at temperature {found.temperature:g}: top-1 {percent(found.top1)}, "
            f"top-5 {percent(found.top5)} of the crops; flipped {percent(found.flip_rate)}"
        ),
        Text(f"images: {sizes}"),
    )


def render_classes(found: Profile) -> RenderableType:
    """One row per class, the ones that the teacher agrees with least first."""
    means = ("max_probability", "ground_truth_probability", "entropy", "area")
    return drawn(
        f"{found.label_set}: {len(found.classes):,} classes",
        (
            "class",
            "images",
            "crops",
            "max p",
            "ground-truth p",
            "entropy",
            "area",
            "top-1",
            "top-5",
        ),
        [
            (
                short(row.title) or "no ground truth",
                f"{row.images:,}",
                f"{row.crops:,}",
                *(number(getattr(row, name)) for name in means),
                percent(row.top1),
                percent(row.top5),
            )
            for row in sorted(found.classes, key=lambda row: (row.top1 is None, row.top1, row.name))
        ],
    )


def render_disagreements(found: Comparisons) -> RenderableType:
    """One row per pair of label sets, and a line for each pair that cannot be compared."""
    measures = ("kl", "kl_reversed", "js", "js_worst")
    rows = []
    for pair in found.pairs:
        names = [
            name if name == teacher else f"{name} ({teacher})"
            for name, teacher in zip(pair.label_sets, pair.teachers, strict=True)
        ]
        agreement = None if pair.top1_agreement is None else 100 * pair.top1_agreement
        of_crops = (f"{pair.num_crops:,}", number(agreement, ".2f", " %"))
        rows.append((*names, *of_crops, *(number(getattr(pair, name)) for name in measures)))
    table = drawn(
        "how far label sets disagree, over the crops that both label",
        ("first", "second", "crops", "same top-1", "KL", "KL reversed", "JS", "worst JS"),
        rows,
        left=2,
        caption="divergences are means in nats: KL(first || second), the reverse, Jensen-Shannon (at most 0.693)",
    )
    return Group(table, *(Text(f"not compared: {why}") for why in found.refused))


def render_storage(found: Storage) -> RenderableType:
    """Bytes by array, label sets beside FKD's files, and FKD Table 2 at the scale asked for."""
    images, crops = found.scale
    scale = f"{images:,} x {crops:,}"
    arrays = drawn(
        f"{found.num_images:,} images x {found.num_crops:,} crops",
        ("array", "dtype", "raw B/crop", "B/crop", "on disk", f"at {scale}"),
        [
            (
                f"{row.group}/{row.array}",
                row.dtype,
                f"{row.raw_per_crop:.2f}",
                number(row.disk_per_crop, ".2f"),
                size(row.disk_bytes),
                size(row.scaled_bytes),
            )
            for row in found.arrays
        ],
        left=2,
    )
    rest = Text(
        f"arrays {size(found.arrays_bytes)}, their metadata {size(found.metadata_bytes)}, "
        f"catalogue {size(found.catalogue_bytes)}"
    )
    parts: list[RenderableType] = [arrays, rest]
    if found.label_sets:
        parts.append(_label_sets(found))
    return Group(*parts, _kinds(found, scale))


def _label_sets(found: Storage) -> Table:
    per_crop = ("labels", "boxes, flips", "together", "FKD payload", "FKD on disk")
    rows = []
    for row in found.label_sets:
        ours = (row.labels_per_crop, row.boxes_per_crop, row.total_per_crop)
        payload, disk = (
            (None, None)
            if row.fkd is None
            else (row.fkd.payload_per_crop, row.fkd.file_bytes_per_crop)
        )
        rows.append(
            (
                row.label_set,
                row.codec,
                *(number(value, ".2f") for value in ours),
                number(payload, ","),
                number(disk, ".1f"),
                number(row.ratio, ".1f", "x"),
            )
        )
    return drawn(
        f"beside FKD's files ({found.scale[1]:,} crops each)",
        ("label set", "compression", *(f"{name} B/crop" for name in per_crop), "FKD / ours"),
        rows,
        left=2,
    )


def _kinds(found: Storage, scale: str) -> Table:
    return drawn(
        f"FKD Table 2 at {scale}",
        (
            "kind",
            "numbers/crop",
            "calculation",
            "FKD files",
            "files B/crop",
            "paper, 1.2 M x 200",
        ),
        [
            (
                row.title,
                f"{row.dimensions:,}",
                size(row.table_bytes),
                size(row.disk_bytes),
                f"{row.file_bytes_per_crop:,.1f}",
                row.paper or "-",
            )
            for row in found.kinds
        ],
        caption="calculation: 4 bytes x numbers per crop; files: 1600 + M x (payload + high bytes) each; "
        "the paper's GB are 2^30 bytes",
    )


def render_codec_table(found: CodecTable) -> RenderableType:
    """Every codec: predicted and measured bytes beside FKD's calculation and files, labels with boxes and flips."""
    images, crops = found.scale
    rows = []
    for row in found.rows:
        star = "*" if row.basis == "raw" else ""
        rows.append(
            (
                row.kind,
                row.dtype or "-",
                f"{row.labels_per_crop:,.2f}{star}",
                f"{row.labels_per_crop + (row.crops_per_crop or 0):,.2f}{star}",
                f"{size(row.predicted_bytes)}{star}",
                number(row.measured_per_crop, ".2f"),
                size(row.measured_bytes),
                size(row.fkd_table_bytes),
                size(row.fkd_disk_bytes),
                row.paper or "-",
            )
        )
    return drawn(
        f"FKD Table 2 with these labels, at {images:,} x {crops:,}",
        (
            "kind",
            "dtype",
            "labels B/crop",
            "together B/crop",
            "predicted",
            "measured B/crop",
            "measured",
            "FKD calculation",
            "FKD files",
            "paper",
        ),
        rows,
        left=2,
        caption=f"predicted from {found.sampled_crops:,} crops of {found.source}, encoded and compressed; * (in part) "
        "bytes before compression, since that label set does not keep enough. Labels with boxes and flips; FKD's "
        "calculation is 4 bytes per number, its files as its generator writes them; the paper's GB are 2^30 bytes",
    )
