"""What a store holds and what it costs: FerKD Table 1, bytes beside FKD Table 2 and FKD's files, a summary."""

from labelstore.stats.bins import (
    PAPER_RATIOS,
    TABLE_1_EDGES,
    Histogram,
    HistogramBin,
    histogram,
)
from labelstore.stats.codec_sizes import CodecStorage, CodecTable, codec_table
from labelstore.stats.cost import Cost, DeviceCost, LabelSetCost, ShardCost, TeacherCost, cost
from labelstore.stats.disagreement import (
    Disagreement,
    Disagreements,
    disagreement,
    disagreements,
)
from labelstore.stats.disk import ArrayStorage, LabelSetStorage, Storage, parse_scale, storage
from labelstore.stats.fkd_files import FKD_TABLE_2, FkdKind, fkd_file_bytes, fkd_kinds
from labelstore.stats.overview import Summary, summary
from labelstore.stats.profile import ClassProfile, Measure, Profile, profile
from labelstore.stats.work import Work, work

__all__ = [
    "FKD_TABLE_2",
    "PAPER_RATIOS",
    "TABLE_1_EDGES",
    "ArrayStorage",
    "ClassProfile",
    "CodecStorage",
    "CodecTable",
    "Cost",
    "DeviceCost",
    "Disagreement",
    "Disagreements",
    "FkdKind",
    "Histogram",
    "HistogramBin",
    "LabelSetCost",
    "LabelSetStorage",
    "Measure",
    "Profile",
    "ShardCost",
    "Storage",
    "Summary",
    "TeacherCost",
    "Work",
    "codec_table",
    "cost",
    "disagreement",
    "disagreements",
    "fkd_file_bytes",
    "fkd_kinds",
    "histogram",
    "parse_scale",
    "profile",
    "storage",
    "summary",
    "work",
]
