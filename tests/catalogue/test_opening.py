from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text, update

from labelstore.catalogue import FORMAT_VERSION, Catalogue
from labelstore.catalogue import schema as t
from labelstore.catalogue.digests import insert_rows
from labelstore.catalogue.engines import parse_url, sqlite_url
from labelstore.errors import (
    ConflictError,
    DamagedShard,
    FormatVersionError,
    LabelStoreError,
    StorageError,
    StoreNotFound,
    UsageError,
)


@pytest.mark.slow
@given(st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=40))
def test_a_path_is_not_url_text(name):
    path = Path("/folder") / name / "catalogue.db"
    assert parse_url(sqlite_url(path)).database == str(path)


def test_what_is_created_can_be_opened(url):
    Catalogue.create(url, uuid="u").close()
    with Catalogue.open(url) as catalogue:
        assert (catalogue.uuid, catalogue.format_version) == ("u", FORMAT_VERSION)
        assert not catalogue.readonly


def test_a_catalogue_is_created_once(url):
    Catalogue.create(url, uuid="u").close()
    with pytest.raises(ConflictError, match="already"):
        Catalogue.create(url, uuid="v")
    assert Catalogue.open(url).uuid == "u"


def test_nothing_there_is_not_found(url):
    with pytest.raises(StoreNotFound):
        Catalogue.open(url)


def test_an_empty_file_is_what_a_killed_creation_leaves(sqlite_path, sqlite_url):
    sqlite_path.touch()
    with pytest.raises(StoreNotFound):
        Catalogue.open(sqlite_url)
    assert Catalogue.create(sqlite_url, uuid="u").uuid == "u"


def test_a_newer_format_is_refused_and_an_older_one_is_read_only(catalogue, url):
    with catalogue.transaction() as conn:
        conn.execute(update(t.store).values(format_version=FORMAT_VERSION + 1))
    with pytest.raises(FormatVersionError, match="update labelstore"):
        Catalogue.open(url)
    with catalogue.transaction() as conn:
        conn.execute(t.store.delete())
        conn.execute(t.digests.delete())
        insert_rows(conn, t.store, [{"uuid": "u", "format_version": 0, "created": 0}])
    with Catalogue.open(url) as older:
        assert older.readonly


def test_a_file_that_is_no_database_is_damage(sqlite_path, sqlite_url):
    sqlite_path.write_bytes(b"not a database" * 1000)
    with pytest.raises(DamagedShard, match=r"catalogue\.db") as caught:
        Catalogue.open(sqlite_url)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_damage(sqlite_path, sqlite_url):
    with Catalogue.create(sqlite_url, uuid="u") as catalogue:
        catalogue.images.add([f"a/{at}" for at in range(2000)], [0] * 2000, [0] * 2000, [0] * 2000)
    data = sqlite_path.read_bytes()
    sqlite_path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedShard), Catalogue.open(sqlite_url) as catalogue:
        catalogue.images.rows()


def test_read_only_refuses_writes_and_reads_on(url):
    with Catalogue.create(url, uuid="u") as catalogue:
        catalogue.add_classes(["a"])
    with Catalogue.open(url, readonly=True) as catalogue:
        assert catalogue.classes() == ("a",)
        with pytest.raises(StorageError, match="read-only"):
            catalogue.add_classes(["a"])
        with pytest.raises((StorageError, DamagedShard)), catalogue.reading() as conn:
            conn.execute(text("DELETE FROM classes"))
        assert catalogue.classes() == ("a",)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://h/d",
        "sqlite://",
        "sqlite:///:memory:",
        "no url",
        "postgresql://user:secret@host/db",
    ],
)
def test_other_urls_and_passwords_are_refused(url):
    with pytest.raises(UsageError) as caught:
        Catalogue.create(url, uuid="u")
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError) as caught:
        Catalogue.open(f"postgresql+psycopg://labelstore@/postgres?host={tmp_path}")
    assert "\n" not in str(caught.value)


def test_sqlite_runs_with_the_settings_that_lose_no_update(sqlite_url, synced):
    wanted = {
        "journal_mode": "delete", "synchronous": 3, "busy_timeout": 60000, "foreign_keys": 1,
        "trusted_schema": 0, "cell_size_check": 1,
    }  # fmt: skip
    with Catalogue.create(sqlite_url, uuid="u") as catalogue, catalogue.transaction() as conn:
        found = {name: conn.execute(text(f"PRAGMA {name}")).scalar() for name in wanted}
    assert found == wanted


def open_without_permission(path):
    """What a reader meets who may not write: what it read, or the error's name. As root it is a child that is not."""
    child, parent = os.pipe()
    with warnings.catch_warnings():
        # From Python 3.12 on a fork warns of threads, and NumPy's BLAS has some; the child never computes.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            with Catalogue.open(f"sqlite:///{path}") as catalogue:
                answer = f"{catalogue.readonly} {catalogue.classes()}"
        except LabelStoreError as error:
            answer = type(error).__name__
        os.write(parent, answer.encode())
        os._exit(0)
    os.close(parent)
    os.waitpid(pid, 0)
    with os.fdopen(child) as answered:
        return answered.read()


@pytest.fixture
def unwritable_folder():
    # Not tmp_path: its parents are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="readonly"))
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_is_read(unwritable_folder):
    path = unwritable_folder / "catalogue.db"
    with Catalogue.create(f"sqlite:///{path}", uuid="u") as catalogue:
        catalogue.add_classes(["a"])
    path.chmod(0o444)
    unwritable_folder.chmod(0o555)
    assert open_without_permission(path) == "True ('a',)"


def test_a_journal_left_by_a_killed_writer_is_rolled_back(sqlite_path, sqlite_url):
    with Catalogue.create(sqlite_url, uuid="u") as catalogue:
        catalogue.add_classes(["a"])
    kill_in_the_middle(sqlite_path)
    assert sqlite_path.with_name("catalogue.db-journal").stat().st_size > 0
    with Catalogue.open(sqlite_url, readonly=True) as catalogue:
        assert catalogue.classes() == ("a",)
        catalogue.verify_digests()


def kill_in_the_middle(path):
    """A writer that has changed pages of the database and dies before its commit."""
    code = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size=1'); c.execute('PRAGMA cache_spill=1'); c.execute('BEGIN IMMEDIATE')\n"
        "c.execute('DELETE FROM classes')\n"
        "c.executemany('INSERT INTO classes VALUES (?, ?)', ((i, f'{i:0200d}') for i in range(5000)))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9


def test_a_journal_that_cannot_be_rolled_back_is_not_read_past(unwritable_folder):
    path = unwritable_folder / "catalogue.db"
    with Catalogue.create(f"sqlite:///{path}", uuid="u") as catalogue:
        catalogue.add_classes(["a"])
    kill_in_the_middle(path)
    for file in unwritable_folder.iterdir():
        file.chmod(0o444)
    unwritable_folder.chmod(0o555)
    assert open_without_permission(path) == "StorageError"


def test_a_busy_catalogue_is_a_conflict(sqlite_path, sqlite_url, monkeypatch):
    monkeypatch.setattr("labelstore.catalogue.engines.BUSY_SECONDS", 0.05)
    catalogue = Catalogue.create(sqlite_url, uuid="u")
    other = sqlite3.connect(sqlite_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ConflictError, match="busy"):
        catalogue.add_classes(["a"])
    other.close()
    catalogue.add_classes(["a"])


def test_a_catalogue_that_is_busy_for_a_while_is_waited_for(sqlite_path, sqlite_url, monkeypatch):
    monkeypatch.setattr("labelstore.catalogue.engines.BUSY_SECONDS", 0.05)
    catalogue = Catalogue.create(sqlite_url, uuid="u")
    other = sqlite3.connect(sqlite_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(
        "labelstore.catalogue.connection._LOG.warning", lambda *_: other.execute("ROLLBACK")
    )
    catalogue.leases.acquire("labels/teacher", 1, "worker", 60, done=99)
    other.close()
