"""What workers ask of the ledger with every block: cheap, and a row that was lost is noticed all the same."""

import shutil
import sqlite3

import numpy as np
import pytest
from sqlalchemy import event

import labelstore
from labelstore import MarginalSmoothing
from labelstore.catalogue import Catalogue, digests
from labelstore.errors import DamagedShard
from labelstore.testing.filled_store import filled_store

GROUP = "labels/teacher"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("polled") / "s.labels"
    dense = np.random.default_rng(0).dirichlet(np.full(4, 0.3), (6, 4)).astype("f4")
    filled_store(path, dense, MarginalSmoothing(k=2), images_per_shard=2, crops_per_shard=2).close()
    return path


def test_no_row_is_hashed_and_no_list_of_files_read(whole, monkeypatch):
    hashed, statements = [], []
    with Catalogue.open(f"sqlite:///{whole / 'catalogue.db'}", readonly=True) as catalogue:
        monkeypatch.setattr(digests, "row_hash", lambda row: hashed.append(row) or 0)
        with catalogue.reading() as conn:
            engine = conn.engine

        def note(conn, cursor, statement, *_):
            statements.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        assert catalogue.ledger.committed(GROUP) == dict.fromkeys(range(3), (0, 1))
    assert hashed == []
    of_shards = [statement for statement in statements if "FROM shards" in statement]
    assert len(of_shards) == 1
    assert "files" not in of_shards[0]


ONE = "group_name = 'labels/teacher' AND block = 1 AND crop_shard = 0"
REST = "num_images, bytes, fence, seconds, device, committed, files"
CHANGES = {
    "lost": f"DELETE FROM shards WHERE {ONE}",
    "added": f"INSERT INTO shards SELECT group_name, 9, crop_shard, {REST} FROM shards WHERE {ONE}",
}


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_a_row_that_is_lost_or_added_is_noticed(whole, tmp_path, statement):
    path = tmp_path / "s.labels"
    shutil.copytree(whole, path)
    raw = sqlite3.connect(path / "catalogue.db")
    raw.execute(statement)
    raw.commit()
    raw.close()
    with labelstore.open(path, readonly=True) as store:
        with pytest.raises(DamagedShard, match="table shards of labels/teacher"):
            store.catalogue.ledger.committed(GROUP)
        with pytest.raises(DamagedShard, match="table shards of labels/teacher"):
            store.label_set()
    assert any("table shards" in problem.what for problem in labelstore.verify(path).problems)


def test_a_row_that_changed_is_noticed_on_opening_and_by_verify(whole, tmp_path):
    path = tmp_path / "s.labels"
    shutil.copytree(whole, path)
    raw = sqlite3.connect(path / "catalogue.db")
    raw.execute("UPDATE shards SET block = 7 WHERE group_name = 'labels/teacher' AND block = 1")
    raw.commit()
    raw.close()
    with (
        labelstore.open(path, readonly=True) as store,
        pytest.raises(DamagedShard, match="table shards of labels/teacher"),
    ):
        store.label_set()
    assert any("table shards" in problem.what for problem in labelstore.verify(path).problems)
