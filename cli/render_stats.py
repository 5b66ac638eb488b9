"""Tables of `labelstore stats` and `labelstore calibrate --dry-run`: data in, rich renderables out."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.output import percent, size
from cli.wording import spoken
from labelstore.analysis.disk import Storage
from labelstore.analysis.histogram import Histogram
from labelstore.analysis.summary import Summary
from labelstore.calibration import Choice, Preview, RegionThresholds


def render_histogram(found: Histogram) -> RenderableType:
    """FerKD Table 1: bins, crops, ratio and aggregated ratio, beside the paper's figures."""
    table = Table(
        title=f"{found.label_set}: {found.num_crops:,} crops by {_words(found.criterion)}",
        caption=_caption_of_histogram(found),
    )
    with_paper = any(row.paper_ratio is not None for row in found.bins)
    table.add_column("range (P)")
    for title in ("crops", "ratio", "agg. ratio"):
        table.add_column(title, justify="right")
    if with_paper:
        for title in ("FerKD ratio", "FerKD agg."):
            table.add_column(title, justify="right", style="dim")
    for row in found.bins:
        end = "]" if row.high == 1 else ")"
        cells = [f"[{row.low:g}, {row.high:g}{end}", f"{row.count:,}"]
        cells += [percent(row.ratio), percent(row.cumulative)]
        if with_paper:
            cells += [percent(row.paper_ratio), percent(row.paper_cumulative)]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def render_storage(found: Storage) -> RenderableType:
    """Bytes by array, label sets beside FKD's files, and FKD Table 2 at the scale asked for."""
    images, crops = found.scale
    scale = f"{images:,} x {crops:,}"
    parts: list[RenderableType] = [_arrays(found, scale), _rest(found)]
    if found.label_sets:
        parts.append(_label_sets(found))
    return Group(*parts, _kinds(found, scale))


def render_summary(found: Summary) -> RenderableType:
    """A label set in figures, one per line."""
    table = Table(title=found.label_set, show_header=False)
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
        "mean max probability": _number(found.mean_max_probability),
        "mean ground-truth probability": _number(found.mean_ground_truth_probability),
        "crops above 0.999": percent(found.certain_crops),
        "read from": f"{found.sampled_crops:,} crops of {found.sampled_blocks:,} image blocks",
        "labelling": f"{found.teacher_seconds:,.0f} s on {', '.join(found.devices) or 'unknown devices'}",
    }
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def render_preview(found: Preview, title: str = "what each choice would do") -> RenderableType:
    """Per choice of thresholds: crops discarded, calibrated and kept, and images left without a crop."""
    table = Table(
        title=Text(f"{found.label_set}: {title}"),
        caption=None
        if found.is_complete
        else "unfinished label set: only committed crops are counted",
    )
    table.add_column("choice")
    by_thresholds = all(isinstance(c.rule, RegionThresholds) for c in found.choices)
    table.add_column("low / middle / top" if by_thresholds else "rule", justify="right")
    for column in ("too hard", "too easy", "calibrated", "kept", "usable", "images left out"):
        table.add_column(column, justify="right")
    for choice in found.choices:
        table.add_row(*(Text(cell) for cell in _choice_cells(choice)))
    notes = [
        Text(f"{choice.title}: {spoken(note)}", style="yellow")
        for choice in found.choices
        for note in choice.notes
    ]
    return Group(table, *notes)


def _choice_cells(choice: Choice) -> list[str]:
    counts, rule = choice.counts, choice.rule
    columns = (counts.too_hard, counts.too_easy, counts.hard, counts.important, counts.usable)
    return [
        choice.title,
        rule.describe(),
        *(f"{count:,}\n{percent(counts.share(count))}" for count in columns),
        f"{counts.images_without_crop:,}\nof {counts.images:,}",
    ]


def _arrays(found: Storage, scale: str) -> Table:
    table = Table(title=f"{found.num_images:,} images x {found.num_crops:,} crops")
    table.add_column("array")
    table.add_column("dtype")
    for title in ("raw B/crop", "B/crop", "on disk", f"at {scale}"):
        table.add_column(title, justify="right")
    for row in found.arrays:
        cells = (
            f"{row.group}/{row.array}",
            row.dtype,
            f"{row.raw_per_crop:.2f}",
            _per_crop(row.disk_per_crop),
            size(row.disk_bytes),
            size(row.scaled_bytes),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _rest(found: Storage) -> Text:
    catalogue = size(found.catalogue_bytes)
    return Text(
        f"arrays {size(found.arrays_bytes)}, their metadata {size(found.metadata_bytes)}, catalogue {catalogue}"
    )


def _label_sets(found: Storage) -> Table:
    table = Table(title=f"beside FKD's files ({found.scale[1]:,} crops each)")
    table.add_column("label set")
    table.add_column("compression")
    for title in ("labels", "boxes, flips", "together", "FKD payload", "FKD on disk", "FKD / ours"):
        table.add_column(f"{title}" if "/" in title else f"{title} B/crop", justify="right")
    for row in found.label_sets:
        cells = (
            row.label_set,
            row.codec,
            _per_crop(row.labels_per_crop),
            _per_crop(row.boxes_per_crop),
            _per_crop(row.total_per_crop),
            "-" if row.fkd is None else f"{row.fkd.payload_per_crop:,}",
            "-" if row.fkd is None else f"{row.fkd.file_bytes_per_crop:.1f}",
            "-" if row.ratio is None else f"{row.ratio:.1f}x",
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _kinds(found: Storage, scale: str) -> Table:
    table = Table(
        title=f"FKD Table 2 at {scale}",
        caption="calculation: 4 bytes x numbers per crop; files: 1600 + M x (payload + high bytes) each; "
        "the paper's GB are 2^30 bytes",
    )
    table.add_column("kind")
    for title in ("numbers/crop", "calculation", "FKD files", "files B/crop", "paper, 1.2 M x 200"):
        table.add_column(title, justify="right")
    for row in found.kinds:
        cells = (
            row.title,
            f"{row.dimensions:,}",
            size(row.table_bytes),
            size(row.disk_bytes),
            f"{row.file_bytes_per_crop:,.1f}",
            row.paper or "-",
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _caption_of_histogram(found: Histogram) -> str | None:
    notes = []
    if found.missing:
        notes.append(f"{found.missing:,} crops of images that were left out are not counted")
    if not found.is_complete:
        notes.append("unfinished label set: only committed crops are counted")
    return "; ".join(notes) or None


def _words(name: str) -> str:
    return name.replace("_", " ")


def _per_crop(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
