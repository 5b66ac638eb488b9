"""What a store holds and what it costs: FerKD Table 1, bytes beside FKD Table 2 and FKD's files, a summary."""

from labelstore.stats.bins import (
    PAPER_RATIOS,
    TABLE_1_EDGES,
    Histogram,
    HistogramBin,
    histogram,
)
from labelstore.stats.disk import ArrayStorage, LabelSetStorage, Storage, parse_scale, storage
from labelstore.stats.fkd_files import FKD_TABLE_2, FkdKind, fkd_file_bytes, fkd_kinds
from labelstore.stats.overview import Summary, summary

__all__ = [
    "FKD_TABLE_2",
    "PAPER_RATIOS",
    "TABLE_1_EDGES",
    "ArrayStorage",
    "FkdKind",
    "Histogram",
    "HistogramBin",
    "LabelSetStorage",
    "Storage",
    "Summary",
    "fkd_file_bytes",
    "fkd_kinds",
    "histogram",
    "parse_scale",
    "storage",
    "summary",
]
