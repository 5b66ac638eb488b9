"""Runs side by side, for people: what was trained, how it went, and by how much one setting beats another."""

from trainer.report.class_results import ClassResult, measure
from trainer.report.page import RunPage, write_report
from trainer.report.paired import PairedDifference, interval, paired_difference
from trainer.report.run_files import RunRecord, find_runs, read_run, short_names

__all__ = [
    "ClassResult",
    "PairedDifference",
    "RunPage",
    "RunRecord",
    "find_runs",
    "interval",
    "measure",
    "paired_difference",
    "read_run",
    "short_names",
    "write_report",
]
