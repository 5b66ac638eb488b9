"""An image that cannot be used is no dead end: it may be replaced, removed or left out, as the messages say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore.store import PlanOptions
from labelstore.store import create as make_store
from tests.generation.conftest import write_photographs, write_teacher

WORK = ["--device", "cpu", "--workers", "1"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("data") / "p", per_class=3)


@pytest.fixture
def folder(photographs, tmp_path) -> Path:
    return Path(shutil.copytree(photographs, tmp_path / "photographs"))


@pytest.fixture
def run(capsys):
    def call(*words):
        code = errors.run(labelstore_app.commands, "labelstore", [str(word) for word in words])
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def create(run, tmp_path, folder, teacher):
    def call(*more, images=folder):
        return run(
            "create", tmp_path / "s", "--images", images, "--teacher", teacher, "--num-crops", 2,
            "--k", 2, "--images-per-shard", 3, *WORK, *more,
        )  # fmt: skip

    return call


def bad_of(path):
    with labelstore.open(path, readonly=True) as store:
        columns = store.image_columns
        return {k: why for k, why in zip(columns["key"], columns["bad"], strict=True) if why}


@pytest.mark.slow
def test_a_junk_file_is_replaced(create, folder, photographs, tmp_path):
    junk = folder / "dog" / "1.jpg"
    good = junk.read_bytes()
    junk.write_bytes(b"junk")
    code, message = create()
    assert code == 7
    assert "cannot be decoded" in message
    assert "0x" not in message, "no address in memory"
    junk.write_bytes(good)
    assert create()[0] == 0
    assert create()[0] == 0
    assert bad_of(tmp_path / "s") == {}
    # from now on it has labels, and another file is refused
    shutil.copy(folder / "cat" / "1.jpg", junk)
    assert create("--name", "again")[0] == 7


@pytest.mark.slow
def test_a_junk_file_is_removed(create, folder, tmp_path, run, teacher):
    junk = folder / "dog" / "1.jpg"
    junk.write_bytes(b"junk")
    assert create()[0] == 7
    junk.unlink()
    code, message = create()
    assert code == 7
    assert "dog/1.jpg of the store is not in" in message
    assert "--skip-bad" in message
    assert create("--skip-bad")[0] == 0
    assert bad_of(tmp_path / "s") == {"dog/1.jpg": f"dog/1.jpg was not in {folder}"}
    # nobody asks for it again
    store = tmp_path / "s"
    assert create()[0] == 0
    assert create("--name", "again")[0] == 0
    about = ("--images", folder, "--teacher", teacher, "--label-set", "one")
    assert run("audit", store, *about)[0] == 0
    assert run("grow", store, "--num-crops", 4, *about, *WORK)[0] == 0
    assert run("verify", store, "--deep")[0] == 0


def test_what_was_left_out_may_go(create, folder, tmp_path):
    junk = folder / "dog" / "1.jpg"
    junk.write_bytes(b"junk")
    assert create("--skip-bad")[0] == 0
    junk.unlink()
    assert create("--name", "again")[0] == 0
    assert list(bad_of(tmp_path / "s")) == ["dog/1.jpg"]


def test_what_has_labels_is_never_left_out(create, folder, tmp_path):
    """Labels of the first block are committed or in the spool when the last image stops the command."""
    (folder / "dog" / "2.jpg").write_bytes(b"junk")
    assert create()[0] == 7
    (folder / "bird" / "0.jpg").unlink()
    code, message = create("--skip-bad")
    assert code == 7
    assert "bird/0.jpg of the store is not in" in message
    assert "--skip-bad" not in message
    assert bad_of(tmp_path / "s") == {}


def test_a_wrong_folder_leaves_nothing_out(create, folder, photographs, tmp_path):
    plan = PlanOptions(num_crops=2, images_per_shard=3)
    make_store(tmp_path / "s", images=folder, plan=plan).close()
    half = Path(shutil.copytree(photographs, tmp_path / "half"))
    for name in ("cat/0.jpg", "cat/1.jpg", "dog/0.jpg"):
        (half / name).unlink()
    code, message = create("--skip-bad", images=half)
    assert code == 7
    assert "(3 missing): give the folder" in message
    assert bad_of(tmp_path / "s") == {}


@pytest.mark.slow
def test_grow_takes_in_no_junk(create, folder, tmp_path, run, teacher):
    assert create()[0] == 0
    store = tmp_path / "s"
    (folder / "cat" / "empty.jpg").write_bytes(b"")
    for more in ([], ["--dry-run"], ["--teacher", teacher, *WORK]):
        code, message = run("grow", store, *more)
        assert (code, "empty.jpg" in message, "--skip-bad" in message) == (7, True, True)
        with labelstore.open(store, readonly=True) as opened:
            assert opened.num_images == 9
    assert run("grow", store, "--skip-bad")[0] == 0
    (folder / "cat" / "empty.jpg").unlink()
    assert run("grow", store, "--teacher", teacher, *WORK)[0] == 7
    assert run("grow", store, "--teacher", teacher, "--skip-bad", *WORK)[0] == 0
    assert list(bad_of(store)) == ["cat/empty.jpg"]
    assert run("audit", store, "--images", folder, "--teacher", teacher)[0] == 0


def test_progress_counts_no_rows_without_images(create, folder, tmp_path, run, teacher):
    """Eight images in blocks of three and one that comes late: it begins a block, and the row before stays free."""
    (folder / "cat" / "2.jpg").rename(folder / "late")
    assert create()[0] == 0
    (folder / "late").rename(folder / "cat" / "2.jpg")
    code, message = run("grow", tmp_path / "s", "--teacher", teacher, *WORK)
    assert code == 0
    assert "18 of 18 crops (100 %)" in message


def test_a_plan_does_not_outgrow_what_create_allows(create, tmp_path, run, teacher):
    assert create()[0] == 0
    more = ("--teacher", teacher, "--dry-run")
    code, message = run("grow", tmp_path / "s", "--num-crops", 10**8, *more)
    assert (code, "at most 100,000" in message) == (2, True)
