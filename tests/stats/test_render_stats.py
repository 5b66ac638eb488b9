"""The tables that the command line prints."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from cli.render_stats import (
    render_histogram,
    render_preview,
    render_storage,
    render_summary,
    size,
)
from labelstore.analysis.disk import storage
from labelstore.analysis.histogram import histogram
from labelstore.analysis.summary import summary
from labelstore.calibration import RegionQuantiles, preview


def text_of(renderable):
    file = io.StringIO()
    Console(file=file, width=160).print(renderable)
    return file.getvalue()


def row_of(text, start):
    (line,) = (line for line in text.splitlines() if start in line and "│" in line)
    return [cell.strip() for cell in line.strip("│┃ ").split("│")]


def test_table_1_stands_beside_the_papers(make_store, like_the_paper):
    found = histogram(make_store(like_the_paper, bad={1}).label_set())
    text = text_of(render_histogram(found))
    row = row_of(text, "[0.9, 0.95)")
    bin_ = found.bins[10]
    assert row == [
        "[0.9, 0.95)",
        f"{bin_.count:,}",
        f"{bin_.ratio:.2%}",
        f"{bin_.cumulative:.2%}",
        "37.34%",
        "99.67%",
    ]
    assert row_of(text, "[0.95, 1]")[-1] == "100.00%"
    assert "40 crops of images that were left out" in text


def test_storage_names_every_array_and_kind(make_store, like_the_paper):
    store = make_store(like_the_paper)
    found = storage(store, scale="1281167x200")
    text = text_of(render_storage(found))
    for row in found.arrays:
        assert row_of(text, f"{row.group}/{row.array} ")[3] == f"{row.disk_per_crop:.2f}"
    assert row_of(text, "│ ms-10")[1] == "25"
    assert "FKD Table 2 at 1,281,167 x 200" in text
    assert f"{found.label_sets[0].ratio:.1f}x" in row_of(text, "ms 5 float32")[-1]
    empty = storage(make_store(like_the_paper, blocks=[]))
    assert row_of(text_of(render_storage(empty)), "crops/plan/box")[3] == "-"


def test_previews_show_crops_shares_and_notes(make_store, like_the_paper):
    like_the_paper[:, 20:] = 1.0
    like_the_paper[4] = 0.1
    found = preview(make_store(like_the_paper).label_set())
    text = text_of(render_preview(found))
    counts = found.choices[0].counts
    row = row_of(text, "FerKD 4.2")
    assert row[2:7] == [
        f"{count:,}"
        for count in (
            counts.too_hard,
            counts.too_easy,
            counts.hard,
            counts.important,
            counts.usable,
        )
    ]
    assert row[7] == "1"
    assert "crops of equal probability are not split" in text
    shares = preview(make_store(like_the_paper[:5]).label_set(), {"mine": RegionQuantiles()})
    assert "mine" in text_of(render_preview(shares))


def test_brackets_in_names_are_not_markup(make_store):
    store = make_store(np.full((2, 4), 0.5))
    found = dataclasses.replace(summary(store.label_set()), teacher="a[red]b")
    assert "a[red]b" in text_of(render_summary(found))


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_999, "1.00 MB"),
        (21_000_000_000, "21.0 GB"),
    ],
)
def test_sizes_are_for_people(num_bytes, text):
    assert size(num_bytes) == text
