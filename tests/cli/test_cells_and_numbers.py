"""Text and numbers on their way into other programs: spreadsheets, terminals, databases."""

import resource

import pytest

from cli.errors import outcome
from labelstore.catalogue import Catalogue
from labelstore.catalogue.records import RunRow
from labelstore.errors import UsageError
from labelstore.untrusted.spreadsheet_cells import from_cell, no_formula


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-a.jpg", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_that_begins_like_a_formula_is_text(cell):
    assert no_formula(cell) == f"'{cell}"
    assert from_cell(f"'{cell}") == cell
    assert [no_formula(each) for each in ("a=1", "", None)] == ["a=1", "", None]


def test_numbers_that_sqlite_does_not_have(tmp_path):
    """-0.0 reads as 0.0, and so is digested as such; NaN is refused in one line."""
    with Catalogue.create(f"sqlite:///{tmp_path / 'catalogue.db'}", uuid="0" * 32) as catalogue:
        run = RunRow(name="r", folder="", label_sets=(), masks=(), config={}, started=-0.0)
        catalogue.runs.add(run)
        catalogue.verify_digests()
        with pytest.raises(UsageError, match="NaN cannot be kept"):
            catalogue.runs.add(
                RunRow(
                    name="s", folder="", label_sets=(), masks=(), config={}, started=float("nan")
                )
            )
        assert [row.name for row in catalogue.runs.all()] == ["r"]


def test_a_library_that_finds_no_memory_is_no_internal_error(monkeypatch):
    error = ImportError("libx.so: failed to map segment from shared object")
    assert outcome(error)[0] == 6
    assert outcome(ImportError("No module named 'x'"))[0] == 1
    assert outcome(RuntimeError("can't start new thread"))[0] == 6
    lost = SystemError("error return without exception set")
    assert outcome(lost)[0] == 1
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 30, 1 << 30))
    assert outcome(lost)[0] == 6


def test_no_memory_left_to_say_so(monkeypatch):
    """Not even the module of the errors can be imported."""

    def imported(name, *more):
        raise MemoryError

    monkeypatch.setattr("builtins.__import__", imported)
    found = outcome(ValueError("x"))
    monkeypatch.undo()
    assert found[0] == 6
