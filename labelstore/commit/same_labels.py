"""Whether labels that are to go into a label set are the ones that it was begun with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from labelstore.catalogue.records import LabelSetRow, TeacherRow
from labelstore.errors import ConflictError


def refuse_differences(
    row: LabelSetRow, path: Path, differences: Mapping[str, tuple[object, object]]
) -> None:
    """ConflictError for the first of these, what -> (the label set's, asked for), that differs."""
    for what, (held, asked) in differences.items():
        if held != asked:
            raise ConflictError(
                f"label set {row.name} in {path} has {what} {_short(what, held)}, asked for {_short(what, asked)}: "
                "use the same, or make another label set with `name=NAME`"
            )


def teacher_differences(held: TeacherRow, asked: TeacherRow) -> dict[str, tuple[object, object]]:
    """What makes the labels of two teachers, for `refuse_differences`."""
    return {
        f"teacher {what}": (value, asked.identity[what]) for what, value in held.identity.items()
    }


def _short(what: str, value: object) -> str:
    # a digest's beginning tells it from others
    return str(value)[:12] if what == "teacher weights" else str(value)
