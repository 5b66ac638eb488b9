"""An older store can be read, refuses writes with a hint, and becomes one of this version, or stays what it was.

So that any two revisions can be tried, these tests make one more: the column `label_sets.facts` comes with it.
"""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import MetaData, Table, create_engine, text

import labelstore
from labelstore import MarginalSmoothing, RegionThresholds
from labelstore.care.freezing import freeze
from labelstore.care.migration import migrate
from labelstore.care.verification import verify
from labelstore.catalogue import Catalogue
from labelstore.catalogue.digests import write_digests
from labelstore.errors import ConflictError, DamagedShard, FormatVersionError, StorageError
from labelstore.testing.filled_store import filled_store

ROOT = Path(__file__).parents[2]

REVISION = """
import os, signal
import sqlalchemy as sa
from alembic import op

revision, down_revision = "{revision}", {before}
branch_labels = depends_on = None


def point(name):
    if os.environ.get("KILL_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


def upgrade():
    point("before")
    op.add_column("label_sets", sa.Column("facts", sa.Text(), nullable=False, server_default="{{}}"))
    point("after")
"""

KILLED = """
import os, signal, sys
from pathlib import Path
import labelstore.catalogue.catalogue, labelstore.catalogue.migrating as migrating
from labelstore.catalogue import migrations

migrations.SCRIPTS = Path(sys.argv[1])
migrating.BASELINE = "0003"
at, held = os.environ["KILL_AT"], {name: getattr(migrating, name) for name in ("write_digests", "verify_tables")}

def kills(name):
    def called(*arguments):
        held[name](*arguments)
        if at == name:
            os.kill(os.getpid(), signal.SIGKILL)
    return called

for name in held:
    setattr(migrating, name, kills(name))
if at == "metadata":
    from labelstore.store import Store
    Store.write_metadata = lambda self: os.kill(os.getpid(), signal.SIGKILL)
# the copy that is read is brought up to date first: only the store itself is to be killed at
open_catalogue = labelstore.catalogue.catalogue.Catalogue.open
from labelstore.care.migration import migrate
class Unread:
    def close(self): pass
labelstore.catalogue.catalogue.Catalogue.open = classmethod(lambda cls, url, **more: Unread()) if at != "metadata" else open_catalogue
migrate(sys.argv[2])
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "original"
    labels = np.random.default_rng(0).dirichlet(np.ones(6), (9, 4)).astype("f4")
    with filled_store(path, labels, MarginalSmoothing(k=2), images_per_shard=4):
        pass
    return path


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    return second_revision(tmp_path / "scripts", monkeypatch)


def second_revision(folder, monkeypatch):
    """The scripts, with one more revision as if this version had it."""
    (folder / "versions").mkdir(parents=True)
    for revision, before in (("0002", None), ("0003", "0002")):
        script = REVISION.format(revision=revision, before=repr(before))
        (folder / "versions" / f"r{revision}.py").write_text(script)
    monkeypatch.setattr("labelstore.catalogue.migrations.SCRIPTS", folder)
    for module in ("migrating", "catalogue"):
        monkeypatch.setattr(f"labelstore.catalogue.{module}.BASELINE", "0003")
    return folder


def make_older(url):
    """Takes the column away, and with it what its digest covers."""
    engine = create_engine(url)
    with engine.begin() as conn:
        conn.execute(text("ALTER TABLE label_sets DROP COLUMN facts"))
        conn.execute(text("DELETE FROM digests WHERE table_name = 'label_sets'"))
        table = Table("label_sets", MetaData(), autoload_with=conn)
        rows = [tuple(row) for row in conn.execute(table.select())]
        write_digests(conn, table, [rows])
    engine.dispose()


@pytest.fixture
def older(original, scripts, tmp_path):
    path = Path(shutil.copytree(original, tmp_path / "older"))
    make_older(f"sqlite:///{path / 'catalogue.db'}")
    return path


def revision_of(path):
    connection = sqlite3.connect(path / "catalogue.db")
    found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    connection.close()
    return found


def labels_of(path):
    with labelstore.open(path) as store:
        labels = store.label_set()
        return np.concatenate([labels.dense(block) for block in labels.blocks])


@pytest.mark.slow
def test_an_older_store_is_read_and_refuses_writes(older, original):
    before = (older / "catalogue.db").read_bytes()
    np.testing.assert_array_equal(labels_of(older), labels_of_original(original))
    with labelstore.open(older) as store:
        assert store.catalogue.readonly
        assert store.label_set_row().facts == {}
        with pytest.raises(StorageError, match="`labelstore migrate STORE` brings it up") as raised:
            labelstore.calibrate(store.label_set(), RegionThresholds(), name="m")
        assert "\n" not in str(raised.value)
        assert str(older / "catalogue.db") in str(raised.value)
        frozen = freeze(store, older.parent / "frozen")
    assert verify(older).is_sound
    assert (older / "catalogue.db").read_bytes() == before
    # the frozen copy is of this version
    assert revision_of(frozen.path) == [("0003",)]
    assert verify(frozen.path, "deep").is_sound


def labels_of_original(path):
    """Read as the version that made it would: `path` is of revision 0002 and has every column."""
    copy = path.parent / "as-0003"
    if not copy.exists():
        shutil.copytree(path, copy)
        connection = sqlite3.connect(copy / "catalogue.db")
        connection.execute("UPDATE alembic_version SET version_num = '0003'")
        connection.commit()
        connection.close()
    return labels_of(copy)


def test_migrate_brings_it_up_to_date_once(older, original):
    assert migrate(older, dry_run=True).revisions == ("0003",)
    assert revision_of(older) == [("0002",)]
    assert migrate(older).revisions == ("0003",)
    assert revision_of(older) == [("0003",)]
    with labelstore.open(older) as store:
        assert not store.catalogue.readonly
        store.catalogue.verify_digests()
        assert labelstore.calibrate(store.label_set(), RegionThresholds(), name="m").is_complete
    assert verify(older, "deep").is_sound
    np.testing.assert_array_equal(labels_of(older), labels_of_original(original))
    before = (older / "catalogue.db").read_bytes()
    assert migrate(older).revisions == ()
    assert (older / "catalogue.db").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("at", ["before", "after", "write_digests", "verify_tables", "metadata"])
def test_killed_it_is_the_old_store_or_the_new_one(older, original, scripts, at):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, scripts, older],
        cwd=ROOT, env={"KILL_AT": at, "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    np.testing.assert_array_equal(labels_of(older), labels_of_original(original))
    assert revision_of(older) == [("0003",)] if at == "metadata" else [("0002",)]
    assert migrate(older).revisions == (() if at == "metadata" else ("0003",))
    assert verify(older, "deep").is_sound
    with labelstore.open(older) as store:
        store.catalogue.verify_digests()


def test_a_damaged_catalogue_is_not_given_new_digests(older):
    connection = sqlite3.connect(older / "catalogue.db")
    connection.execute("UPDATE label_sets SET num_classes = 7")
    connection.commit()
    connection.close()
    before = (older / "catalogue.db").read_bytes()
    with pytest.raises(DamagedShard, match="label_sets"):
        migrate(older)
    assert (older / "catalogue.db").read_bytes() == before


def test_not_under_a_writer_and_not_when_frozen(older, original, tmp_path):
    connection = sqlite3.connect(older / "catalogue.db")
    (found,) = connection.execute("SELECT count(*) FROM leases WHERE expires > 0").fetchone()
    assert found == 0
    connection.close()
    busy = Path(shutil.copytree(original, tmp_path / "busy"))
    with Catalogue.open(f"sqlite:///{older / 'catalogue.db'}") as read:
        assert read.readonly
    with pytest.MonkeyPatch.context() as patch:
        for module in ("migrating", "catalogue"):  # as the version of 0002
            patch.setattr(f"labelstore.catalogue.{module}.BASELINE", "0002")
        with labelstore.open(busy) as store:
            assert store.catalogue.leases.acquire("labels/teacher", 9, "somebody", 600.0, done=2)
    make_older(f"sqlite:///{busy / 'catalogue.db'}")
    with pytest.raises(ConflictError, match="somebody is writing to the store"):
        migrate(busy)
    assert revision_of(busy) == [("0002",)]
    (older / "labelstore.json").write_text("{}")
    with pytest.raises(StorageError, match="is frozen and never changes"):
        migrate(older)


def test_a_newer_or_unknown_revision_is_refused(older):
    for revision, error in ((["0009"], FormatVersionError), ([], DamagedShard)):
        connection = sqlite3.connect(older / "catalogue.db")
        connection.execute("DELETE FROM alembic_version")
        connection.executemany(
            "INSERT INTO alembic_version VALUES (?)", [revision] if revision else []
        )
        connection.commit()
        connection.close()
        for what in (labelstore.open, migrate):
            with pytest.raises(error, match="revision"):
                what(older)


@pytest.mark.slow
def test_on_a_server(postgresql_url, scripts):
    with pytest.MonkeyPatch.context() as patch:
        for module in ("migrating", "catalogue"):
            patch.setattr(f"labelstore.catalogue.{module}.BASELINE", "0002")
        Catalogue.create(postgresql_url, uuid="u").close()
    make_older(postgresql_url)
    with pytest.raises(FormatVersionError, match="labelstore migrate"):
        Catalogue.open(postgresql_url)
    assert Catalogue.migrate(postgresql_url, dry_run=True) == ("0003",)
    assert Catalogue.migrate(postgresql_url) == ("0003",)
    assert Catalogue.migrate(postgresql_url) == ()
    with Catalogue.open(postgresql_url) as catalogue:
        catalogue.verify_digests()
        assert catalogue.label_sets.all() == ()


@pytest.mark.slow
def test_the_command(older, labelstore_command):
    code, _, err = labelstore_command("calibrate", older)
    assert code == 6
    assert "labelstore migrate" in err
    assert err.count("\n") == 1
    code, out, _ = labelstore_command("migrate", older, "--dry-run")
    assert (code, out) == (0, f"would bring {older} up to date: revision 0003\n")
    code, out, _ = labelstore_command("migrate", older, "--json")
    assert code == 0
    assert json.loads(out)["revisions"] == ["0003"]
    code, out, _ = labelstore_command("migrate", older)
    assert (code, out) == (0, f"{older} is up to date: nothing to do\n")
    assert labelstore_command("migrate", older / "nowhere")[0] == 4
