"""Numbers that floats have and databases may not: what is read is what is digested, or it is refused in one line."""

import math

import pytest

from labelstore.catalogue.records import ResultRow, RunRow, TeacherRow
from labelstore.errors import UsageError

NUMBERS = (0.0, -0.0, 5e-324, -1e-310, 1 / 3, 1.7976931348623157e308, math.inf, -math.inf, math.nan)


def test_every_float_is_as_it_was_or_refused(catalogue):
    """In each float column, and inside JSON."""

    def run(name, started, **config):
        return RunRow(name=name, folder="", label_sets=(), masks=(), config=config, started=started)

    def teacher(name, value):
        return TeacherRow(
            name=name, source="s", architecture="a", digest=name * 64, num_classes=3, input_size=32, mean=(0, 0, 0),
            std=(1, 1, 1), interpolation="bilinear", crop_pct=value, top1=value,
        )  # fmt: skip

    for number, value in enumerate(NUMBERS):
        name = f"{number:x}"
        rows = [
            (catalogue.runs, run(name, value), not math.isnan(value)),
            (catalogue.runs, run(f"c{name}", 0.0, lr=[value]), math.isfinite(value)),
            (catalogue.teachers, teacher(name, value), not math.isnan(value)),
            (
                catalogue.results,
                ResultRow(run=name, name="x", epoch=1, value=value),
                not math.isnan(value),
            ),
        ]
        for table, row, is_kept in rows:
            if is_kept:
                table.add(row)
                assert row in table.all()
                table.add(row)  # found again, and no other
            else:
                with pytest.raises(UsageError, match="cannot be kept"):
                    table.add(row)
            catalogue.verify_digests()
