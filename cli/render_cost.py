"""The cost ledger as text: a table of label sets and devices, then a line or two for each teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.output import print_table
from cli.progress import duration

if TYPE_CHECKING:
    from labelstore.analysis.teacher_time import Cost, TeacherCost


def print_cost(cost: Cost) -> None:
    """Print what labels cost by label set and device, and what they cost per student so far."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("label set")
    table.add_column("device")
    for name in ("time", "crops", "crops/s", "images/s"):
        table.add_column(name, justify="right")
    for part in cost.label_sets:
        for device in part.devices:
            table.add_row(
                # as text: a name is never read as markup
                Text(part.label_set),
                Text(device.device or "not recorded"),
                duration(device.seconds),
                f"{device.crops:,}",
                _rate(device.crops_per_second),
                _rate(device.images_per_second),
            )
    print()
    print_table(table)
    for teacher in cost.teachers:
        print(_sentence(teacher))


def _rate(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _sentence(teacher: TeacherCost) -> str:
    if not teacher.crops:
        return (
            f"teacher {teacher.teacher}: labelled no crop here, what its labels cost is not known"
        )
    spent = f"teacher {teacher.teacher}: {duration(teacher.seconds)} for {teacher.crops:,} crops"
    count = len(teacher.students)
    if teacher.seconds_per_student is None:
        students = "no student yet"
    else:
        students = f"{count} student{'' if count == 1 else 's'}, {duration(teacher.seconds_per_student)} each so far"
    ahead = f"ahead of an online teacher after {teacher.epochs_to_break_even:,.0f} student epochs"
    saved = teacher.seconds_saved
    if saved is None:
        state = f"{teacher.epochs_so_far:,.0f} so far"
    else:
        word = f"{duration(saved)} saved" if saved >= 0 else f"{duration(-saved)} to go"
        state = f"{teacher.epochs_so_far:,.0f} so far: {word}"
    return f"{spent}; {students}; {ahead}, {state}"
