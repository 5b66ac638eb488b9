"""macOS: a sync goes through the drive's cache where the file system can, as if this were one."""

import errno
import fcntl
import os

import pytest

from labelstore.arrays.durable import write_file
from labelstore.catalogue import Catalogue
from labelstore.errors import StorageError

FULL = 51


@pytest.fixture
def calls(monkeypatch):
    """What was synced and how; `refuses` makes the file system answer with an error."""
    record = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL, raising=False)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: record.append("fsync") or fsync(fd))

    def refusing(number):
        def call(descriptor, command):
            assert command == FULL
            record.append("full")
            if number:
                raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "fcntl", call)
        return record

    return refusing


def test_the_drive_is_asked_to_empty_its_cache(calls, tmp_path):
    record = calls(0)
    write_file(tmp_path / "a", b"data")
    assert record == ["full", "full"]  # the file, its folder


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY])
def test_a_file_system_that_cannot_is_synced_as_elsewhere(calls, tmp_path, number):
    record = calls(number)
    write_file(tmp_path / "a", b"data")
    assert record == ["full", "fsync"] * 2


def test_a_disk_that_fails_is_not_asked_twice(calls, tmp_path):
    record = calls(errno.EIO)
    with pytest.raises(StorageError, match="the disk refused"):
        write_file(tmp_path / "a", b"data")
    assert record == ["full"]
    assert list(tmp_path.iterdir()) == []


def test_the_catalogue_syncs_as_fully(tmp_path):
    with (
        Catalogue.create(f"sqlite:///{tmp_path / 'catalogue.db'}", uuid="u") as catalogue,
        catalogue.reading() as conn,
    ):
        assert conn.exec_driver_sql("PRAGMA fullfsync").scalar() == 1
