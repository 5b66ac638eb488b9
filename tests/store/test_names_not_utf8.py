"""Names with bytes that are no UTF-8: refused in one printable line before any work, also from Python."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

import labelstore
from labelstore import MarginalSmoothing, PlanOptions
from labelstore.care.migration import migrate
from labelstore.errors import LabelStoreError, RejectedInput, UsageError
from labelstore.images import open_images, scan_folder
from labelstore.sharing import hub
from labelstore.teachers.teacher import load_teacher
from labelstore.testing.filled_store import filled_store
from tests.flat_options import label_images, plan_import

NO_TEXT = os.fsdecode(b"nu\xff")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A store, and a folder of images."""
    folder = tmp_path_factory.mktemp("given")
    probs = np.random.default_rng(0).dirichlet(np.full(3, 0.3), (2, 2)).astype(np.float32)
    filled_store(folder / "s.labels", probs, MarginalSmoothing(k=2), images_per_shard=2).close()
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        (folder / "images" / name / "0.jpg").write_bytes(b"")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def in_one_line(error):
    message = str(error)
    assert message.isprintable(), message  # surrogates are not, and could not be encoded
    assert "nu\\udcff" in message
    return message


CALLS = {
    "create": lambda given, bad: labelstore.create(
        bad, images=given / "images", plan=PlanOptions(num_crops=2)
    ),
    "open": lambda given, bad: labelstore.open(bad),
    "open another in it": lambda given, bad: labelstore.open(bad / "s.labels"),
    "label": lambda given, bad: label_images(
        bad, images=given / "images", teacher="none", codec=MarginalSmoothing(k=2), num_crops=2
    ),
    "freeze": lambda given, bad: labelstore.freeze(labelstore.open(given / "s.labels"), bad),
    "merge": lambda given, bad: labelstore.merge(bad, [given / "s.labels", given / "t.labels"]),
    "merge it": lambda given, bad: labelstore.merge(
        bad.parent / "out", [given / "s.labels", bad], dry_run=True
    ),
    "migrate": lambda given, bad: migrate(bad),
    "pull": lambda given, bad: hub.pull("./none", bad),
    "import": lambda given, bad: plan_import(
        bad, format="npz", source=given, images=given / "images"
    ),
    "import it": lambda given, bad: plan_import(
        given / "new", format="npz", source=bad, images=given / "images"
    ),
    "images": lambda given, bad: open_images(bad),
    "teacher": lambda given, bad: load_teacher(str(bad)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_path_that_is_no_text_is_refused_before_anything_is_written(given, tmp_path, call):
    before = names(given)
    with pytest.raises(UsageError, match="is not UTF-8") as refused:
        call(given, tmp_path / NO_TEXT)
    in_one_line(refused.value)
    assert names(tmp_path) == []
    assert names(given) == before


def test_a_relative_path_where_the_folder_that_this_runs_in_is_no_text(
    given, tmp_path, monkeypatch
):
    (tmp_path / NO_TEXT).mkdir()
    monkeypatch.chdir(tmp_path / NO_TEXT)
    for call in (CALLS["create"], CALLS["open"]):
        with pytest.raises(UsageError, match="is not UTF-8"):
            call(given, type(tmp_path)("s.labels"))
    assert names(tmp_path / NO_TEXT) == []


@pytest.mark.parametrize("make", ["file", "folder", "class", "empty class", "broken link"])
def test_images_whose_names_are_no_text_are_named_printably(tmp_path, make):
    images = tmp_path / "images"
    for name in ("a", "b"):
        (images / name).mkdir(parents=True)
        (images / name / "0.jpg").write_bytes(b"")
    if make == "file":
        (images / "a" / f"{NO_TEXT}.jpg").write_bytes(b"")
    elif make == "broken link":
        (images / "a" / f"{NO_TEXT}.jpg").symlink_to(tmp_path / "gone")
    else:
        folder = images / ("a" if make == "folder" else "") / NO_TEXT
        folder.mkdir()
        if make != "empty class":
            (folder / "1.jpg").write_bytes(b"")
    for work in (
        lambda: labelstore.create(
            tmp_path / "s.labels", images=images, plan=PlanOptions(num_crops=2)
        ),
        lambda: plan_import(tmp_path / "s.labels", format="npz", source=tmp_path, images=images),
    ):
        with pytest.raises(RejectedInput) as refused:
            work()
        in_one_line(refused.value)
    assert names(tmp_path) == ["images"]


@pytest.mark.parametrize(
    "changes",
    [{"keys": ("a/0.jpg", f"b/{NO_TEXT}.jpg")}, {"classes": ("a", NO_TEXT)}],
    ids=["key", "class"],
)
def test_a_source_of_ones_own_cannot_bring_such_names_either(given, tmp_path, changes):
    source = replace(scan_folder(given / "images"), **changes)
    with pytest.raises(LabelStoreError, match="is not UTF-8") as refused:
        labelstore.create(tmp_path / "s.labels", images=source, plan=PlanOptions(num_crops=2))
    assert isinstance(refused.value, (UsageError, RejectedInput))
    in_one_line(refused.value)
    assert names(tmp_path) == []


def test_asking_for_an_image_of_such_a_name_is_refused(given):
    with (
        labelstore.open(given / "s.labels") as store,
        pytest.raises(LabelStoreError, match="UTF-8") as refused,
    ):
        store.image_rows([NO_TEXT])
    in_one_line(refused.value)
