"""R1: kill -9 at random moments of generation; nothing that was committed is lost, every restart completes."""

import random

import pytest

from labelstore.store import open_store
from tests.stress.conftest import (
    IMAGES_PER_SHARD,
    acknowledged,
    assert_complete_and_right,
    assert_nothing_lost,
    make_empty,
    told,
)

KILLS = 12


@pytest.mark.sample(1)
def test_random_kills_lose_nothing(empty, nursery, scale, matrix, tmp_path):
    rng = random.Random(1)
    kills = stores = 0
    wanted = max(3, round(KILLS * scale))
    mean = 0.15
    while kills < wanted:
        path, done = empty(), set()
        result = tmp_path / f"result{stores}"
        stores += 1
        while kills < wanted:
            pid = nursery.start("write", result, path)
            try:
                status = nursery.wait(pid, timeout=rng.uniform(0.01, 2 * mean))
            except AssertionError:
                nursery.kill(pid)
                kills += 1
                done = assert_nothing_lost(path, done | acknowledged(result))
            else:
                assert status == 0
                break
        pid = nursery.start("write", result, path)
        assert nursery.wait(pid) == 0
        assert_complete_and_right(path)
    matrix.record("R1", kills=kills, lost=0, wrong=0, restarts=stores)


def test_random_kills_with_a_catalogue_on_a_server(nursery, scale, matrix, tmp_path, on_server):
    """R1 on PostgreSQL: the server rolls back what the killed worker had begun."""
    rng, kills, stores = random.Random(5), 0, 0
    wanted = max(2, round(3 * scale))
    while kills < wanted:
        backend = ("zarr", "hdf5")[stores % 2]
        path, done = on_server(make_empty(tmp_path / f"store{stores}", backend)), set()
        result = tmp_path / f"result{stores}"
        stores += 1
        while kills < wanted:
            pid = nursery.start("write", result, path)
            try:
                status = nursery.wait(pid, timeout=rng.uniform(0.01, 0.4))
            except AssertionError:
                nursery.kill(pid)
                kills += 1
                done = assert_nothing_lost(path, done | acknowledged(result))
            else:
                assert status == 0
                break
        assert nursery.wait(nursery.start("write", result, path)) == 0
        assert_complete_and_right(path)
    matrix.record("R1", kills=kills, lost=0, wrong=0, restarts=stores)


@pytest.mark.sample(1)
@pytest.mark.parametrize("database", ["SQLite", "PostgreSQL"])
def test_eight_writers_share_the_blocks_and_do_nothing_twice(
    nursery, scale, matrix, tmp_path, database, request
):
    """R11, its first half."""
    blocks = max(8, round((16 if database == "SQLite" else 8) * scale))
    path = make_empty(tmp_path / "store", "zarr", blocks * IMAGES_PER_SHARD)
    if database == "PostgreSQL":
        request.getfixturevalue("on_server")(path)
    results = [tmp_path / f"result{n}" for n in range(8)]
    pids = [nursery.start("write", result, path) for result in results]
    assert [nursery.wait(pid) for pid in pids] == [0] * 8
    said = [record["committed"] for r in results for record in told(r) if "committed" in record]
    assert sorted(said) == list(range(blocks))
    assert all(told(result)[-1] == {"code": 0, "message": ""} for result in results)
    assert_complete_and_right(path)
    with open_store(path) as store:
        assert {row.fence for row in store.catalogue.ledger.shards("labels/teacher")} == {1}
    # two shards a block, of labels and of boxes
    matrix.record("R11", shards=4 * blocks, duplicates=0, lost=0)
