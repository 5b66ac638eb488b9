"""The report of the matrix: counts against targets, and rows that were not run again stay as they were."""

import json
import sys

from benchmarks import reliability


def record(row, **figures):
    return {
        "row": row, "test": f"test_{row}", "figures": figures, "failed": False, "seconds": 1.0, "scale": 20.0,
        "commit": "abc",
    }  # fmt: skip


def report(folder, monkeypatch, records, *options):
    file = folder / "matrix.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    monkeypatch.setattr(sys, "argv", ["reliability", str(file), "--reports", str(folder), *options])
    reliability.main()
    return json.loads((folder / "reliability.json").read_text())["rows"]


def test_rows_that_no_file_counts_stay_where_asked(tmp_path, monkeypatch):
    first = [record("R1", kills=150, lost=0, wrong=0), record("R6", zarr_flips=3, unnoticed=1)]
    rows = report(tmp_path, monkeypatch, first)
    assert rows["R1"]["verdict"] == "short"
    assert rows["R6"]["verdict"] == "FAILED"
    assert rows["R2"]["verdict"] == "not run"
    again = [record("R1", kills=150, lost=0, wrong=0), record("R1", kills=50, lost=0, wrong=0)]
    kept = report(tmp_path, monkeypatch, again, "--keep")
    assert kept["R1"]["verdict"] == "met"
    assert kept["R6"] == rows["R6"]
    assert report(tmp_path, monkeypatch, again)["R6"]["verdict"] == "not run"
