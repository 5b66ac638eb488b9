"""A frozen store: whole, checkable, refused to every writer, readable where nothing can be written."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import labelstore
from labelstore import MarginalSmoothing
from labelstore.care import freezing
from labelstore.care.freezing import freeze
from labelstore.care.verification import verify
from labelstore.errors import ConflictError, DamagedShard, IncompleteError, StorageError
from labelstore.testing.filled_store import filled_store
from tests.integrity.conftest import flip_bit, shard_paths, soft_labels

ROOT = Path(__file__).parents[2]


def test_in_place_and_copied_are_equal_and_sound(store, tmp_path):
    labels = store.label_set().recover([0, 5])
    (store.arrays.root / ".c.0.0.12-ab.tmp").write_bytes(b"rest")
    copied = freeze(store, tmp_path / "copy")
    assert not (store.path / "labelstore.json").exists()
    frozen = freeze(store)
    assert frozen.root == copied.root
    assert freeze(store).already
    for path in (store.path, tmp_path / "copy"):
        report = verify(path, "deep")
        assert report.frozen
        assert report.is_sound, [str(problem) for problem in report.problems]
        with labelstore.open(path) as opened:
            assert (opened.label_set().recover([0, 5]) == labels).all()
    assert not list((tmp_path / "copy").rglob("*.tmp"))


def test_every_writer_is_refused_also_one_that_was_open_before(store):
    early = labelstore.open(store.path)
    freeze(store)
    for opened in (early, store, labelstore.open(store.path)):
        with pytest.raises(StorageError, match="frozen"):
            opened.catalogue.leases.acquire("labels/teacher", 1, "late", 60, done=99)
        with pytest.raises(StorageError, match="frozen"):
            labelstore.calibrate(opened.label_set(), name="ferkd")
    assert verify(store).is_sound


def test_nobody_writes_to_the_copy_before_the_manifest_is_there(store, monkeypatch):
    write, tried = freezing.write_file, []

    def late(path, data):
        # the copy has the catalogue's name, the manifest is not there yet
        with monkeypatch.context() as patch:
            patch.setattr("labelstore.catalogue.engines.BUSY_SECONDS", 0)
            other = labelstore.open(store.path)
            tried.append(other.label_sets)
            with pytest.raises(ConflictError, match="busy"):
                other.catalogue.leases.acquire("labels/teacher", 1, "late", 60, done=99)
        write(path, data)

    monkeypatch.setattr(freezing, "write_file", late)
    freeze(store)
    assert tried == [("teacher",)]
    assert verify(store.path).is_sound


def test_what_is_written_while_files_are_hashed_is_noticed(store, monkeypatch):
    digest, done = freezing.file_digest, []

    def meanwhile(path):
        if not done:
            with monkeypatch.context() as patch:
                # hashing holds no lock
                patch.setattr("labelstore.catalogue.engines.BUSY_SECONDS", 0)
                labelstore.open(store.path).catalogue.groups.drop("labels/teacher")
            done.append(path)
        return digest(path)

    monkeypatch.setattr(freezing, "file_digest", meanwhile)
    with pytest.raises(ConflictError, match="written to meanwhile"):
        freeze(store)
    assert done
    assert not (store.path / "labelstore.json").exists()


def test_what_cannot_be_frozen(store, tmp_path):
    lease = store.catalogue.leases.acquire("labels/teacher", [0], "worker", 60, done=99)
    with pytest.raises(ConflictError, match="worker is writing"):
        freeze(store)
    store.catalogue.leases.release(lease)
    with pytest.raises(ConflictError, match="exists"):
        freeze(store, store.path)
    flip_bit(shard_paths(store)[0], 100)
    for target in (None, tmp_path / "copy"):
        with pytest.raises(DamagedShard, match=r"labelstore\.verify"):
            freeze(store, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert not (store.path / "labelstore.json").exists()


def test_an_incomplete_store_needs_to_be_allowed(tmp_path):
    with filled_store(
        tmp_path / "s", soft_labels(), MarginalSmoothing(k=3), images_per_shard=8, blocks=[0]
    ) as store:
        with pytest.raises(IncompleteError, match="allow_incomplete"):
            freeze(store)
        freeze(store, allow_incomplete=True)
        assert verify(store).is_sound


@pytest.mark.parametrize("what", ["catalogue.db", "labelstore.json", "shard", "gone"])
def test_a_changed_copy_is_noticed(store, tmp_path, what):
    freeze(store, tmp_path / "copy")
    copy = tmp_path / "copy"
    shard = copy / shard_paths(store)[0].relative_to(store.path)
    path = shard if what in ("shard", "gone") else copy / what
    path.chmod(0o644)
    if what == "gone":
        path.unlink()
    elif what == "catalogue.db":
        # a free byte at the end of a page: SQLite does not care, the manifest does
        path.write_bytes(path.read_bytes() + b"\0" * 4096)
    else:
        flip_bit(path, 5000)
    report = verify(copy)
    assert {problem.path for problem in report.problems} == {str(path)}
    assert "restore it" in str(report.problems[0])


@pytest.fixture
def open_folder():
    """A folder that other users may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_frozen_store_is_read_where_nothing_can_be_written(open_folder):
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("no setpriv to become somebody who may not write")
    path = open_folder / "frozen"
    with filled_store(open_folder / "s", soft_labels(), MarginalSmoothing(k=3)) as store:
        freeze(store, path)
    folders = [path, *(found for found in path.rglob("*") if found.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    program = (
        "import labelstore, sys; s = labelstore.open(sys.argv[1]); "
        "print(s.label_set().recover([1]).sum().round(3), labelstore.verify(s).is_sound)"
    )
    become = ["setpriv", "--reuid=65534", "--clear-groups"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*become, sys.executable, "-c", program, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    for folder in folders:
        folder.chmod(0o755)
    assert done.stdout.split() == ["6.0", "True"], done.stderr


def test_the_command(store, tmp_path, labelstore_command):
    code, out, _ = labelstore_command(
        "freeze", store.path, tmp_path / "copy", "--dry-run", "--json"
    )
    assert code == 0
    planned = json.loads(out)
    assert not (tmp_path / "copy").exists()
    code, out, err = labelstore_command("freeze", store.path, tmp_path / "copy", "--json")
    assert code == 0, err
    assert json.loads(out)["files"] == planned["files"]
    code, out, err = labelstore_command("calibrate", tmp_path / "copy")
    assert (code, out, err.count("\n")) == (6, "", 1)
    assert "frozen" in err
    assert labelstore_command("verify", tmp_path / "copy")[0] == 0
    assert labelstore_command("gc", tmp_path / "copy")[0] == 0
