"""What SQLite and our own readers would do with files that a stranger laid beside a catalogue: refused before."""

import os
import resource
import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import labelstore
from labelstore import MarginalSmoothing
from labelstore.arrays.checked_files import MAX_METADATA_BYTES, read_limited
from labelstore.arrays.sharding import Damage
from labelstore.care.verification import verify
from labelstore.errors import DamagedShard, RejectedInput
from labelstore.store.frozen_store import MAX_MANIFEST_BYTES, read_manifest
from labelstore.testing.filled_store import filled_store

MAGIC = bytes.fromhex("d9d505f920a163d7")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("untrusted") / "s.labels"
    dense = np.random.default_rng(1).dirichlet(np.full(4, 0.3), (4, 2)).astype("f4")
    filled_store(path, dense, MarginalSmoothing(k=2), images_per_shard=4).close()
    return path


@pytest.fixture
def path(template, tmp_path):
    return shutil.copytree(template, tmp_path / "s.labels")


@pytest.fixture
def precious(tmp_path):
    file = tmp_path / "precious"
    file.write_bytes(b"precious" * 100)
    return file


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to", None])
def test_files_of_a_write_ahead_log_are_refused(path, precious, suffix, link):
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    file = path / f"catalogue.db{suffix}"
    if link is None:
        file.write_bytes(b"")
    else:
        getattr(file, link)(precious)
    with pytest.raises(RejectedInput, match="write-ahead log") as raised:
        labelstore.open(path)
    assert "\n" not in str(raised.value)
    assert precious.read_bytes() == b"precious" * 100
    file.unlink()
    # the log's files are the harm: without them SQLite goes back by itself
    with labelstore.open(path) as store:
        assert store.label_sets == ("teacher",)


def journal_that_names(victim, database):
    """A journal as SQLite leaves it where one transaction changed several databases: it ends with another
    journal's name."""
    page_bytes = struct.unpack(">H", database[16:18])[0]
    page = database[:page_bytes]
    checksum = sum(page[at] for at in range(page_bytes - 200, 0, -200)) & 0xFFFFFFFF
    header = MAGIC + struct.pack(">IIIII", 1, 0, len(database) // page_bytes, 512, page_bytes)
    name = str(victim).encode()
    end = struct.pack(">I", (1 << 30) // page_bytes + 1) + name
    end += struct.pack(">II", len(name), sum(name) & 0xFFFFFFFF) + MAGIC
    return (
        header.ljust(512, b"\0") + struct.pack(">I", 1) + page + struct.pack(">I", checksum) + end
    )


def test_a_journal_that_has_sqlite_delete_a_file_is_refused(path, precious):
    journal = path / "catalogue.db-journal"
    journal.write_bytes(journal_that_names(precious, (path / "catalogue.db").read_bytes()))
    with pytest.raises(RejectedInput, match="SQLite to delete"):
        labelstore.open(path)
    assert precious.exists()
    # that is what it would have done
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        connection.execute("SELECT count(*) FROM image_blocks").fetchone()
    assert not precious.exists()


def test_a_linked_spool_is_refused(path, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (path / "spool").mkdir(exist_ok=True)
    (path / "spool" / "teacher").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RejectedInput, match="is a link"):
        labelstore.open(path)


STATEMENTS = {
    "virtual": (
        "CREATE VIRTUAL TABLE extra USING fts5(a)",
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET sql = 'CREATE/**/VIRTUAL TABLE extra USING fts5(a)' WHERE name = 'extra'",
    ),
    "computed": (
        "CREATE TABLE r2 (run TEXT, name TEXT, epoch INTEGER, value DOUBLE AS (length(hex(run)) * 1.0))",
        "DROP TABLE results",
        "ALTER TABLE r2 RENAME TO results",
    ),
    "check": ("CREATE TABLE extra (a TEXT CHECK (length(hex(zeroblob(9))) > 1))",),
    "default": ("CREATE TABLE extra (a TEXT DEFAULT (length(hex(zeroblob(9)))))",),
    "index": ("CREATE INDEX extra ON image_blocks (length(key))",),
    "partial": ("CREATE INDEX extra ON image_blocks (key) WHERE length(key) > 1",),
    "view": ("CREATE VIEW extra AS SELECT 1",),
    "trigger": ("CREATE TRIGGER extra AFTER INSERT ON image_blocks BEGIN SELECT 1; END",),
    "many": tuple(f"CREATE TABLE extra{at} (a)" for at in range(1001)),
}  # fmt: skip


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_schema_that_computes_is_refused(path, name):
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        with connection:
            for statement in STATEMENTS[name]:
                connection.execute(statement)
    with pytest.raises(RejectedInput, match="does not make there"):
        labelstore.open(path)


def test_what_sqlite_tools_leave_is_not_refused(path):
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        connection.execute("ANALYZE")
        connection.execute("VACUUM")
    with labelstore.open(path) as store:
        assert verify(store).is_sound


@pytest.fixture
def little_memory():
    """No more than 2 GiB beyond what is in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_files_too_large_to_be_ours_are_not_read(path, little_memory):
    metadata = path / "arrays.zarr" / "zarr.json"
    kept = metadata.read_bytes()
    os.truncate(metadata, 6 << 30)
    with pytest.raises(DamagedShard, match="larger than metadata"):
        labelstore.open(path)
    with labelstore.store.open_store(path, checked=False) as store:
        with pytest.raises(DamagedShard, match="more than the"):
            store.arrays.attributes()
        assert any("larger" in problem.what for problem in verify(store, "fast").problems)
    metadata.write_bytes(kept)
    manifest = path / "labelstore.json"
    manifest.touch()
    os.truncate(manifest, MAX_MANIFEST_BYTES + 1)
    with pytest.raises(DamagedShard, match="more than the"):
        read_manifest(manifest)


def test_only_plain_files_are_read(tmp_path, precious):
    assert read_limited(precious, 800) == precious.read_bytes()
    with pytest.raises(Damage, match="800 bytes, more than the 799"):
        read_limited(precious, 799)
    (tmp_path / "link").symlink_to(precious)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "missing", "."):
        assert read_limited(tmp_path / name, MAX_METADATA_BYTES) is None
