"""The durable writer: order of the system calls, and what a failure leaves behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from labelstore.arrays import durable
from labelstore.arrays.durable import StagedFiles, is_temporary, write_durably, write_file
from labelstore.errors import StorageError


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """System calls in order, each with its path."""
    # tmp_path is asked for so that its own folders are made before we listen
    record = []

    def listen(name, where):
        real = getattr(os, name)

        def call(*args, **kwargs):
            record.append((name, where(*args)))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    def descriptor_path(descriptor, *_):
        return Path(f"/proc/self/fd/{descriptor}").readlink()

    listen("write", descriptor_path)
    listen("fsync", descriptor_path)
    listen("mkdir", lambda path, *_: Path(path))
    listen("replace", lambda _, final: Path(final))
    return record


def files_below(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def test_data_reaches_the_disk_before_its_name(calls, tmp_path):
    path = tmp_path / "a" / "b" / "file"
    with StagedFiles() as staged:
        staged.stage(path, b"data")
        (temporary,) = path.parent.iterdir()
        assert is_temporary(temporary.name)
        assert str(os.getpid()) in temporary.name
        calls.append(("commit", None))
        staged.publish()
    assert calls == [
        ("mkdir", tmp_path / "a"),
        ("fsync", tmp_path),
        ("mkdir", tmp_path / "a" / "b"),
        ("fsync", tmp_path / "a"),
        ("write", temporary),
        ("fsync", temporary),
        ("commit", None),
        ("replace", path),
        ("fsync", path.parent),
    ]
    assert path.read_bytes() == b"data"


def test_each_folder_is_synced_once_after_all_renames(calls, tmp_path):
    with StagedFiles() as staged:
        for name in ("a/1", "a/2", "b/1"):
            staged.stage(tmp_path / name, name.encode())
        assert staged.paths == tuple(tmp_path / name for name in ("a/1", "a/2", "b/1"))
        calls.clear()
        staged.publish()
    assert [name for name, _ in calls] == ["replace"] * 3 + ["fsync"] * 2
    assert files_below(tmp_path) == ["a/1", "a/2", "b/1"]


def test_unpublished_files_are_removed(tmp_path):
    def interrupted():
        with StagedFiles() as staged:
            staged.stage(tmp_path / "file", b"data")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files_below(tmp_path) == []


def test_staging_twice_keeps_the_later(tmp_path):
    with StagedFiles() as staged:
        staged.stage(tmp_path / "file", b"one")
        staged.stage(tmp_path / "file", b"two")
        staged.publish()
    assert files_below(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"two"


def test_short_writes_are_continued(monkeypatch, tmp_path):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    write_file(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_file_that_is_too_short_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "write", lambda descriptor, data: len(data))
    with pytest.raises(StorageError, match="0 bytes arrived of 4"):
        write_durably(tmp_path / "file", b"data")
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EACCES, errno.EDQUOT]
)
@pytest.mark.parametrize("name", ["open", "write", "fsync", "close", "fstat", "replace", "mkdir"])
def test_every_failing_call_names_the_file_and_leaves_nothing(monkeypatch, tmp_path, name, number):
    target = tmp_path / "new" / "file"
    real = getattr(os, name)

    def fail(first, *args, **kwargs):
        if name == "close":
            real(first)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(StorageError) as error:
            write_file(target, b"data")
    message = str(error.value)
    assert str(tmp_path) in message
    assert "\n" not in message
    assert ("no space left" in message) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert error.value.exit_code == 6
    assert files_below(tmp_path) == []


def test_an_old_file_survives_a_failed_replacement(monkeypatch, tmp_path):
    write_file(tmp_path / "file", b"old")

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError):
            write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_file_where_a_folder_is_due(tmp_path):
    (tmp_path / "labels").write_bytes(b"")
    with pytest.raises(StorageError, match="labels"):
        durable.write_file(tmp_path / "labels" / "file", b"data")
