"""FKD Table 2 of `labelstore stats --storage`: data in, a rich table out."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cli.output import size
from labelstore.analysis.codec_sizes import CodecStorage, CodecTable


def render_codec_table(found: CodecTable) -> RenderableType:
    """Every codec: predicted and measured bytes beside FKD's calculation and files, labels with boxes and flips."""
    images, crops = found.scale
    table = Table(
        title=f"FKD Table 2 with these labels, at {images:,} x {crops:,}",
        caption=f"predicted from {found.sampled_crops:,} crops of {found.source}, encoded and compressed; * (in part) "
        "bytes before compression, since that label set does not keep enough. Labels with boxes and flips; FKD's "
        "calculation is 4 bytes per number, its files as its generator writes them; the paper's GB are 2^30 bytes",
    )
    table.add_column("kind")
    table.add_column("dtype")
    for title in (
        "labels B/crop",
        "together B/crop",
        "predicted",
        "measured B/crop",
        "measured",
        "FKD calculation",
        "FKD files",
        "paper",
    ):
        table.add_column(title, justify="right")
    for row in found.rows:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    return table


def _cells(row: CodecStorage) -> tuple[str, ...]:
    star = "*" if row.basis == "raw" else ""
    together = row.labels_per_crop + (row.crops_per_crop or 0)
    return (
        row.kind,
        row.dtype or "-",
        f"{row.labels_per_crop:,.2f}{star}",
        f"{together:,.2f}{star}",
        f"{size(row.predicted_bytes)}{star}",
        "-" if row.measured_per_crop is None else f"{row.measured_per_crop:.2f}",
        size(row.measured_bytes),
        size(row.fkd_table_bytes),
        size(row.fkd_disk_bytes),
        row.paper or "-",
    )
