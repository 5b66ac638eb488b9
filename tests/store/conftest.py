"""A copy of the test module's store for every test, and rows of masks."""

from __future__ import annotations

import shutil

import pytest

import labelstore
from labelstore.catalogue.records import MaskRow


@pytest.fixture
def store(template, tmp_path):
    """The test module's `template`, copied and opened."""
    shutil.copytree(template, tmp_path / "s.labels")
    with labelstore.open(tmp_path / "s.labels") as opened:
        yield opened


def mask_row(name, rule, *, num_crops):
    """The row of a mask of label set `teacher`, as `calibrate` registers it."""
    return MaskRow(
        name=name,
        plan="plan",
        teacher="teacher",
        label_set="teacher",
        num_crops=num_crops,
        rule=rule.to_record(),
    )
