"""Where commands may write: never into a store, nor over something that is not theirs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app
from labelstore import MarginalSmoothing, PlanOptions
from labelstore.arrays.durable import STORE_MARKS
from labelstore.errors import UsageError
from labelstore.sharing.remotes import FolderRemote
from labelstore.store.opening import ARRAY_FOLDERS, CATALOGUE_FILE, CATALOGUE_URL_FILE
from tests.kept_stores import kept_store


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    path = tmp_path_factory.mktemp("places") / "f.labels"
    probs = np.random.default_rng(0).dirichlet(np.full(3, 0.3), (4, 2)).astype(np.float32)
    store = kept_store(path, probs, MarginalSmoothing(k=2), images_per_shard=4)
    labelstore.freeze(store)
    store.close()
    return path


def run(capsys, *arguments):
    code = errors.run(labelstore_app.commands, "labelstore", [str(a) for a in arguments])
    return code, capsys.readouterr().err


def tree(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))


def test_marks_of_a_store_are_the_names_that_stores_have():
    names = ((CATALOGUE_FILE, CATALOGUE_URL_FILE), tuple(ARRAY_FOLDERS.values()))
    assert names == STORE_MARKS


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "command",
    [
        ("report", "{0}", "--out", "{0}/x.html"),
        ("crops", "{0}", "--out", "{0}/c.csv"),
        ("plot", "{0}", "histogram", "--out", "{0}/arrays.zarr/p.png"),
        ("export", "npz", "{0}", "{0}/e"),
        ("push", "{0}", "{0}"),
        ("push", "{0}", "{0}/shared"),
        ("demo-images", "{0}/demo"),
    ],
    ids=lambda command: " ".join(command),
)
def test_nothing_is_written_into_a_store(frozen, capsys, command):
    before = tree(frozen)
    code, message = run(capsys, *(part.format(frozen) for part in command))
    assert code == 2
    assert f"{frozen}" in message
    assert "give a path outside" in message
    assert tree(frozen) == before


def test_a_link_into_a_store_is_no_way_around(frozen, tmp_path, capsys):
    (tmp_path / "way").symlink_to(frozen / "arrays.zarr")
    code, message = run(capsys, "crops", frozen, "--out", tmp_path / "way" / "c.csv")
    assert (code, "is inside the store" in message) == (2, True)


@pytest.fixture
def images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "0.jpg").write_bytes(b"")
    return tmp_path / "images"


MAKES_A_STORE = {
    "create": ("create", "{new}", "--images", "{images}", "--teacher", "none", "--num-crops", "2"),
    "merge": ("merge", "{new}", "{store}", "{other}"),
    "freeze": ("freeze", "{other}", "{new}"),
    "import": ("import", "npz", "{images}", "{new}", "--images", "{images}"),
    "pull": ("pull", "{images}", "{new}"),
}


@pytest.mark.sample(17)
@pytest.mark.parametrize("dry_run", [False, True], ids=["", "dry-run"])
@pytest.mark.parametrize("place", ["{store}/backup", "{store}/arrays.zarr/a/b", "{way}/x/../y"])
@pytest.mark.parametrize("command", MAKES_A_STORE.values(), ids=MAKES_A_STORE)
def test_no_store_is_made_inside_another(frozen, images, tmp_path, capsys, command, place, dry_run):
    way, other = tmp_path / "way", tmp_path / "other"
    way.symlink_to(frozen / "arrays.zarr")
    shutil.copytree(frozen, other)
    before = tree(frozen)
    new = place.format(store=frozen, way=way)
    words = [
        part.format(new=new, store=frozen, other=other, images=images)
        for part in (*command, *(["--dry-run"] if dry_run else []))
    ]
    code, message = run(capsys, *words)
    assert (code, message.count("\n")) == (2, 1)
    assert f"{new} is inside the store {frozen}: give a path outside" in message
    assert tree(frozen) == before
    assert not list(tmp_path.glob(".*"))


def test_from_python_too_and_no_folder_is_made_on_the_way(frozen, images, tmp_path):
    before = tree(frozen)
    for place, why in (
        (frozen / "backup", "is inside the store"),
        (frozen / "none" / ".." / ".." / "new.labels", "leads through the store"),
        (frozen / "none" / ".." / ".." / "gone" / ".." / "new.labels", "leads through the store"),
    ):
        with pytest.raises(UsageError, match=why):
            labelstore.create(place, images=images, plan=PlanOptions(num_crops=2))
    assert tree(frozen) == before
    # out of it again by folders that are there, it is any other place
    labelstore.create(
        frozen / "arrays.zarr" / ".." / ".." / "beside.labels",
        images=images,
        plan=PlanOptions(num_crops=2),
    ).close()
    assert (frozen.parent / "beside.labels").is_dir()


def test_a_store_that_lies_in_another_since_earlier_opens(frozen, images, tmp_path):
    outer = tmp_path / "outer.labels"
    shutil.copytree(frozen, outer)
    labelstore.create(
        tmp_path / "inner.labels", images=images, plan=PlanOptions(num_crops=2)
    ).close()
    (tmp_path / "inner.labels").rename(outer / "inner.labels")
    with labelstore.open(outer / "inner.labels") as store:
        assert store.num_images == 2


def test_push_refuses_a_folder_of_other_things_and_a_file(frozen, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "thesis.tex").write_text("mine")
    code, message = run(capsys, "push", frozen, data, "--dry-run")
    assert (code, "thesis.tex" in message) == (5, True)
    assert run(capsys, "push", frozen, data)[0] == 5
    assert tree(data) == ["thesis.tex"]
    code, message = run(capsys, "push", frozen, data / "thesis.tex")
    assert (code, "is a file" in message) == (5, True)


def test_push_takes_an_empty_folder_and_its_own(frozen, tmp_path, capsys):
    (tmp_path / "shared").mkdir()
    assert run(capsys, "push", frozen, tmp_path / "shared")[0] == 0
    assert run(capsys, "push", frozen, tmp_path / "shared")[0] == 0
    assert FolderRemote(tmp_path / "shared").resolve("main") is not None
