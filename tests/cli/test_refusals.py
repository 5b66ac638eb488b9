"""Refusals that say what was given and what is allowed, with the exit code that is theirs."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest

import labelstore
from cli import errors, labelstore_app, trainer_app
from labelstore import Full, MarginalSmoothing
from labelstore.arrays.durable import make_folders
from labelstore.errors import RejectedInput, StorageError, UsageError
from labelstore.sharing import hub
from labelstore.sharing.remotes import FolderRemote
from labelstore.teachers.class_map import _from_file
from labelstore.teachers.labeller import check_temperature
from tests.kept_stores import kept_store


def made(path, codec=None, **options):
    probs = np.random.default_rng(0).dirichlet(np.full(3, 0.3), (4, 2)).astype(np.float32)
    return kept_store(path, probs, codec or MarginalSmoothing(k=2), images_per_shard=2, **options)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    with made(tmp_path_factory.mktemp("refusals") / "f") as store:
        labelstore.freeze(store)
        yield store


@pytest.fixture
def run(capsys):
    def call(*words, app=labelstore_app):
        code = errors.run(app.commands, "program", [str(word) for word in words])
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("temperature", [0, -1, 1e-308, 1e308, float("nan"), float("inf")])
def test_temperatures_that_leave_nothing_of_logits(temperature):
    with pytest.raises(UsageError, match=r"within 0\.001 and 1000"):
        check_temperature(temperature)


def test_a_root_digest_has_64_digits(run, tmp_path):
    code, _, message = run("pull", tmp_path / "r", tmp_path / "t", "--expect-root", "abc")
    assert (code, "64 hex digits" in message) == (2, True)


@pytest.mark.parametrize("line", ["0,c0", "c1", "c1,", "c1,x"])
def test_a_class_map_names_the_line(tmp_path, line):
    (tmp_path / "map.csv").write_text(f"c0,0\n{line}\n")
    with pytest.raises(RejectedInput, match=f"map.csv, line 2: '{line}' is not"):
        _from_file(tmp_path / "map.csv", ["c0", "c1"])


def test_crops_of_an_empty_key(run, frozen):
    for keys in (",", "a,,b"):
        assert run("crops", frozen.path, "--images", keys)[0] == 2
    code, _, message = run("crops", frozen.path, "--images", 10**21)
    assert (code, message.count("\n")) == (2, 1)


def test_a_batch_that_nobody_means(run, tmp_path):
    words = ("create", tmp_path / "s", "--images", "x", "--teacher", "t", "--batch-size", 10**11)
    assert run(*words)[0] == 2


def test_recipes_by_their_name(run):
    code, _, message = run("run", "--recipe", "nope", app=trainer_app)
    assert (code, "; `trainer recipes` lists them" in message) == (2, True)


def test_a_dry_export_has_written_no_files_and_counts_none(run, frozen, tmp_path):
    code, out, _ = run("export", "npz", frozen.path, tmp_path / "e", "--dry-run", "--json")
    assert (code, json.loads(out)["files"]) == (0, None)


def test_what_is_advised_can_be_done(run, tmp_path):
    made(tmp_path / "s", Full(dtype="float32")).close()
    code, _, message = run("export", "ml-dr", tmp_path / "s", tmp_path / "e")
    assert (code, "--k 2`" in message) == (2, True)


@pytest.mark.slow
def test_a_merge_that_goes_on_keeps_its_layout(run, tmp_path):
    for name in "ab":
        made(tmp_path / name).close()
    stores = (tmp_path / "m", tmp_path / "a", tmp_path / "b")
    assert run("merge", *stores)[0] == 0
    assert run("merge", *stores, "--images-per-shard", 2, "--backend", "zarr")[0] == 0
    for flag, value in (("--images-per-shard", 4), ("--backend", "hdf5")):
        code, _, message = run("merge", *stores, flag, value)
        assert (code, f"asked for {flag} {value}" in message) == (5, True)


def test_conflicts_name_what_differs_and_nothing_else(run, tmp_path):
    made(tmp_path / "a").close()
    made(tmp_path / "b", MarginalSmoothing(k=1)).close()
    code, _, message = run("merge", tmp_path / "m", tmp_path / "a", tmp_path / "b")
    assert code == 5
    assert "is k 2 in" in message
    assert "k 1 in" in message
    assert "{" not in message


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(StorageError, match="something else has its place"):
            make_folders(path)


def test_a_full_disk_names_its_own_side_and_leaves_nothing(frozen, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    remote = FolderRemote(tmp_path / "shared")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        with pytest.raises(StorageError, match="no space left on the disk"):
            hub.push(frozen, str(remote.root))
        assert not remote.root.exists()
        remote.root.mkdir()  # the user's own folder stays
        with pytest.raises(StorageError):
            hub.push(frozen, str(remote.root))
        assert remote.root.is_dir()
    commit = hub.push(frozen, str(remote.root)).commit
    assert commit is not None
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(StorageError, match=str(tmp_path / "here")):
        remote.download(commit, "README.md", 1, tmp_path / "here")
