"""A store in a folder of a group: its members write into it, and whoever may not is told why."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import labelstore
from labelstore import MarginalSmoothing
from labelstore.errors import LabelStoreError
from labelstore.testing.filled_store import filled_store
from tests.machines.conftest import soft_labels

NOBODY = 65534


def open_to_write(path: Path) -> str:
    """What is said where a store is opened and a block leased."""
    try:
        with labelstore.open(path) as store:
            store.catalogue.leases.acquire("labels/x", 1, "me", 60)
    except LabelStoreError as error:
        return f"{type(error).__name__} {error}"
    return "written"


@pytest.fixture
def grouped(tmp_path):
    """A store made with umask 002 in a folder whose group is handed down."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o2775)
    before = os.umask(0o002)
    try:
        path = folder / "store"
        filled_store(path, soft_labels(shape=(4, 2, 5)), MarginalSmoothing(k=2)).close()
    finally:
        os.umask(before)
    return path


def opened_by_nobody(path: Path) -> str:
    """The same by somebody else: a fork, since a program of root's may not be for everybody."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writing, open_to_write(path).encode())
        except Exception as error:  # noqa: BLE001 - what a user must not see
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        return said.read()


def test_files_are_as_the_umask_says(grouped):
    for path in grouped.rglob("*"):
        wanted = 0o775 if path.is_dir() else 0o664
        assert stat.S_IMODE(path.stat().st_mode) & 0o777 == wanted, path


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_who_may_not_write_is_told_why(grouped):
    for folder in [*grouped.parents][:-2]:
        folder.chmod(folder.stat().st_mode | 0o055)
    grouped.chmod(0o755)
    (grouped / "catalogue.db").chmod(0o644)
    # imports everything that the fork needs
    assert open_to_write(grouped) == "written"
    said = opened_by_nobody(grouped)
    assert said.startswith("StorageError")
    assert "may not be written by this user" in said
    assert f"chmod -R g+rwX {grouped}" in said
    grouped.chmod(0o700)
    said = opened_by_nobody(grouped)
    assert said.startswith("StorageError")
    assert str(grouped) in said
