"""A store whose catalogue is on a PostgreSQL server: every command works on it, and stores in one database stay
apart."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from sqlalchemy import create_engine, text

import labelstore
from labelstore import MarginalRenorm, RegionThresholds
from labelstore.analysis.disk import storage
from labelstore.blocks.block_map import block_map
from labelstore.care.dropping import drop
from labelstore.care.freezing import freeze
from labelstore.care.leftovers import gc
from labelstore.care.verification import verify
from labelstore.errors import ConflictError, StorageError, UsageError
from labelstore.labelling.deriving import derive
from tests.generation.conftest import write_photographs, write_teacher
from tests.machines.conftest import everything

RULE = RegionThresholds(low=0.2, middle=0.3, top=0.9)


def schemas(postgresql):
    engine = create_engine(postgresql)
    with engine.begin() as conn:
        found = conn.execute(
            text("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'labelstore%'")
        )
        names = {row[0] for row in found}
    engine.dispose()
    return names


def assert_equal(one, other):
    for left, right in zip(everything(one), everything(other), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_it_is_the_store_that_a_file_would_give(make_store, postgresql, tmp_path):
    served, plain = make_store("served", catalogue=postgresql), make_store("plain")
    assert not (served.path / "catalogue.db").exists()
    url = (served.path / "catalogue.url").read_text()
    assert f"labelstore_{served.uuid}" in url
    assert_equal(served.label_set(), plain.label_set())
    for store in (served, plain):
        labelstore.calibrate(store.label_set(), RULE, name="m")
        derive(store.label_set("teacher"), MarginalRenorm(k=2), name="mr")
    assert_equal(served.label_set("mr"), plain.label_set("mr"))
    assert [row.files for row in served.catalogue.ledger.shards("masks/m")] == [
        row.files for row in plain.catalogue.ledger.shards("masks/m")
    ]
    assert storage(served).catalogue_bytes > 0
    assert verify(served.path, "deep").is_sound
    assert gc(served).removed == ()
    drop(served, "label-set", "mr")
    assert served.label_sets == ("teacher",)
    # a copy of the folder is the same store: the catalogue is not in it
    with labelstore.open(shutil.copytree(served.path, tmp_path / "copy")) as copy:
        assert copy.uuid == served.uuid
    served.close()
    plain.close()


@pytest.mark.slow
def test_stores_in_one_database_stay_apart(make_store, postgresql):
    one, two = (make_store(name, seed, catalogue=postgresql) for seed, name in enumerate("ab"))
    labelstore.calibrate(one.label_set(), RULE, name="only-in-one")
    assert (one.masks, two.masks) == (("only-in-one",), ())
    assert not np.array_equal(
        everything(one.label_set())[0], everything(two.label_set())[0], equal_nan=True
    )
    assert {f"labelstore_{store.uuid}" for store in (one, two)} <= schemas(postgresql)
    for store in (one, two):
        assert verify(store.path).is_sound
        store.close()
    # a schema of one's own choice holds one store
    engine = create_engine(postgresql)
    with engine.begin() as conn:
        conn.execute(text("CREATE SCHEMA chosen"))
    engine.dispose()
    chosen = f"{postgresql}&options=-csearch_path%3Dchosen"
    make_store("c", catalogue=chosen).close()
    with pytest.raises(ConflictError, match="there is a catalogue already"):
        make_store("d", catalogue=chosen)
    assert sorted(path.name for path in one.path.parent.iterdir()) == ["a", "b", "c"]


def test_processes_share_the_blocks(make_store, postgresql):
    store = make_store(catalogue=postgresql)
    with block_map(workers=2) as workers:
        variant = derive(store.label_set(), MarginalRenorm(k=2), name="mr", map_blocks=workers)
    assert variant.is_complete
    assert verify(store.path, "deep").is_sound
    store.close()


@pytest.mark.parametrize("in_place", [False, True])
def test_frozen_it_has_its_catalogue_with_it(make_store, postgresql, tmp_path, in_place):
    store = make_store(catalogue=postgresql)
    labelstore.calibrate(store.label_set(), RULE, name="m")
    wanted = everything(store.label_set())
    frozen = freeze(store, None if in_place else tmp_path / "frozen")
    assert not (frozen.path / "catalogue.url").exists()
    assert verify(frozen.path, "deep").is_sound
    with labelstore.open(frozen.path) as copy:
        copy.catalogue.verify_digests()
        assert copy.uuid == store.uuid
        for left, right in zip(everything(copy.label_set()), wanted, strict=True):
            np.testing.assert_array_equal(left, right)
        with pytest.raises(StorageError, match="frozen"):
            labelstore.calibrate(copy.label_set(), RULE, name="other")
    if in_place:
        with pytest.raises(StorageError, match="frozen"):  # who had it open on the server
            labelstore.calibrate(store.label_set(), RULE, name="other")
        # killed before catalogue.url was removed: the copy in the folder counts
        (frozen.path / "catalogue.url").write_text("postgresql://127.0.0.1:1/gone\n")
        labelstore.open(frozen.path).close()
    else:
        labelstore.calibrate(store.label_set(), RULE, name="other")
    store.close()


def test_a_creation_that_fails_leaves_nothing(make_store, postgresql, tmp_path, monkeypatch):
    before = schemas(postgresql)
    with monkeypatch.context() as patch:
        patch.setattr("labelstore.store.store.Store.write_metadata", _full_disk)
        with pytest.raises(StorageError, match="no space left"):
            make_store(catalogue=postgresql)
    assert schemas(postgresql) == before
    assert not list(tmp_path.iterdir())


def _full_disk(self):
    raise StorageError("no space left on the disk")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://me:secret@127.0.0.1/labels", "holds a password"),
        ("postgresql://127.0.0.1/labels?password=secret", "holds a password"),
        ("postgresql://127.0.0.1/labels?sslkey=/etc/passwd", "allowed are"),
        ("sqlite:////tmp/elsewhere.db", "lies in the store"),
        ("mysql://127.0.0.1/labels", "postgresql"),
        ("nonsense", "postgresql"),
        ("", "postgresql"),
    ],
)
def test_urls_that_are_refused(make_store, tmp_path, url, why):
    with pytest.raises(UsageError, match=why) as raised:
        make_store(catalogue=url)
    assert "secret" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_server_that_does_not_answer(make_store, tmp_path):
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(StorageError, match="could not be read or written") as raised:
        make_store(catalogue="postgresql://127.0.0.1:1/labels")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_psycopg_not_installed_is_said_in_one_line(make_store, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match=r"labelstore\[postgresql\]"):
        make_store(catalogue="postgresql://127.0.0.1/labels")
    assert not list(tmp_path.iterdir())


def test_the_commands(postgresql, tmp_path, labelstore_command):
    photographs = write_photographs(tmp_path / "photographs", per_class=2)
    teacher = write_teacher(tmp_path / "teacher", seed=0)
    path = tmp_path / "s.labels"
    create = ["create", path, "--images", photographs, "--teacher", teacher, "--num-crops", "4"]
    create += ["--k", "2", "--device", "cpu", "--workers", "1", "--images-per-shard", "4"]
    code, out, err = labelstore_command(*create, "--catalogue", "postgresql://u:secret@h/d")
    assert (code, out) == (2, "")
    assert "secret" not in err
    code, out, err = labelstore_command(*create, "--catalogue", postgresql)
    assert code == 0, err
    assert (path / "catalogue.url").exists()
    # again: the same server is recognised, another one refused
    assert labelstore_command(*create, "--catalogue", postgresql)[0] == 0
    assert labelstore_command(*create)[0] == 0
    code, _, err = labelstore_command(*create, "--catalogue", "postgresql://elsewhere/d")
    assert code == 5
    assert "on another server" in err
    grow = ["grow", path, "--images", photographs, "--teacher", teacher, "--num-crops", "8"]
    assert labelstore_command(*grow, "--device", "cpu", "--workers", "1")[0] == 0
    for command in ("info", "stats", "verify"):
        assert labelstore_command(command, path)[0] == 0
    code, out, _ = labelstore_command("freeze", path, tmp_path / "frozen", "--json")
    assert code == 0
    assert json.loads(out)["frozen"]
    assert labelstore_command("verify", tmp_path / "frozen", "--deep")[0] == 0
