"""Runs side by side, for people: what was trained, how it went, and by how much one setting beats another."""

from trainer.report.compared_settings import PairedDifference, interval, paired_difference
from trainer.report.run_files import (
    ClassResult,
    RunRecord,
    find_runs,
    measure,
    read_run,
    short_names,
)
from trainer.report.run_page import RunPage, write_report

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
