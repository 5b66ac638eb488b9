"""Blocks that share a transaction: each is judged by its own lease, and a kill anywhere leaves ledger and disk
equal."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import labelstore
from labelstore import MarginalSmoothing
from labelstore.blocks.block_map import map_in_threads
from labelstore.calibration import RegionThresholds, calibrate
from labelstore.care.verification import verify
from labelstore.commit import staging as writing
from labelstore.commit import worker
from labelstore.commit.block_jobs import BlockSource, MadeBlock
from labelstore.commit.staging import BlockArrays, commit_blocks, stage_block
from labelstore.commit.worker import work_through
from labelstore.errors import DamagedShard, LeaseLost, StorageError
from labelstore.testing.filled_store import filled_store
from tests.store.conftest import mask_row

RULE = RegionThresholds(low=0.25, middle=0.4, top=0.9)
GROUP = "masks/together"
BLOCKS = 12


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("together") / "s.labels"
    dense = np.random.default_rng(2).dirichlet(np.full(6, 0.3), (BLOCKS * 4, 6)).astype("f4")
    with filled_store(path, dense, MarginalSmoothing(k=3), images_per_shard=4) as opened:
        opened.catalogue.masks.add(mask_row("together", RULE, num_crops=6))
        opened.write_metadata()
    return path


def regions(value=1):
    return BlockArrays(
        group=GROUP, crop_shard=0, arrays={"region": np.full((4, 6), value, np.uint8)}
    )


def staged(store, lease, value=1):
    return stage_block(store, lease, [regions(value)], num_images=4)


def acquire(store, count=3, owner="one", seconds=60.0):
    return store.catalogue.leases.acquire_blocks(GROUP, BLOCKS, owner, seconds, count=count)


def mask_files(store):
    return sorted(path.name for path in (store.arrays.root / GROUP / "region").glob("*c.*"))


def committed(store):
    return sorted(store.catalogue.ledger.committed(GROUP))


def assert_ledger_is_disk(store):
    rows = store.catalogue.ledger.shards(GROUP)
    for row in rows:
        specs = list(store.group(row.group).specs.values())
        assert store.arrays.verify(specs, (row.block, row.crop_shard), row.files, "deep") == []
    return rows


def test_a_lost_lease_takes_nobody_with_it(store):
    leases = acquire(store, 3)
    blocks = [staged(store, lease) for lease in leases]
    store.catalogue.leases.renew(leases[1], 0.01)
    time.sleep(0.05)
    (taken,) = store.catalogue.leases.acquire_blocks(GROUP, [1], "two", 60.0, count=1)
    first, lost, third = commit_blocks(store, blocks)
    assert (first, third) == (None, None)
    assert isinstance(lost, LeaseLost)
    assert committed(store) == [0, 2]
    assert mask_files(store) == ["c.0.0", "c.2.0"], "a file of the lost block, or a temporary one"
    assert commit_blocks(store, [staged(store, taken, value=2)]) == [None]
    assert len(assert_ledger_is_disk(store)) == 3


def test_all_leases_lost_commits_nothing_and_leaves_nothing(store):
    blocks = [staged(store, lease) for lease in acquire(store, 2)]
    store.catalogue.leases.release(*(block.lease for block in blocks))
    assert all(isinstance(refused, LeaseLost) for refused in commit_blocks(store, blocks))
    assert (committed(store), mask_files(store)) == ([], [])


def test_many_leases_are_renewed_and_given_up_in_one_go(store):
    leases = acquire(store, 5)
    assert [lease.block for lease in leases] == [0, 1, 2, 3, 4]
    store.catalogue.leases.release(leases[1])
    renewed = store.catalogue.leases.renew_blocks(leases, 100.0)
    assert [isinstance(lease, LeaseLost) for lease in renewed] == [False, True, *[False] * 3]
    assert renewed[0].expires > leases[0].expires
    store.catalogue.leases.release(*leases)
    assert store.catalogue.leases.live(GROUP) == []
    assert [lease.fence for lease in acquire(store, 2, owner="two")] == [2, 2]


def kills(where):
    """A function that ends this process as kill -9 does, the `where`-th time it is called."""
    calls = iter(range(1, 1000))

    def maybe():
        if next(calls) == where:
            os.kill(os.getpid(), signal.SIGKILL)

    return maybe


def before(module, name, kill):
    real = getattr(module, name)

    def wrapped(*args, **options):
        kill()
        return real(*args, **options)

    setattr(module, name, wrapped)


POINTS = {
    "one block staged": lambda: before(worker, "commit_blocks", kills(2)),
    "before the transaction": lambda: before(worker, "commit_blocks", kills(1)),
    "before the renames": lambda: before(writing, "publish_together", kills(2)),
    "between two renames": lambda: before(labelstore.arrays.durable, "publish", kills(4)),
    "before the folder's fsync": lambda: before(
        labelstore.arrays.durable, "fsync_folder", kills(2)
    ),
    "before the rows": lambda: before(labelstore.catalogue.ledger, "insert_rows", kills(2)),
    "after the commit": lambda: before(worker.LeaseKeeper, "forget", kills(2)),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_ledger_and_disk_equal(store, point):
    child = os.fork()
    if child == 0:
        try:
            POINTS[point]()
            with labelstore.open(store.path) as mine:
                calibrate(mine.label_set(), RULE, name="together")
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it was not killed where it should be"
    store.refresh()
    done = {row.block for row in assert_ledger_is_disk(store)}
    assert len(done) < BLOCKS
    assert verify(store.path, "fast", workers=1).problems == ()
    mask = calibrate(store.label_set(), RULE, name="together")
    assert mask.is_complete
    labels = store.label_set()
    for block in labels.blocks:
        expected = RULE.regions(labels.max_probability(block))
        np.testing.assert_array_equal(mask.regions(block), expected)


def test_blocks_share_transactions(store, monkeypatch):
    sizes = []
    commit = worker.commit_blocks
    monkeypatch.setattr(
        worker,
        "commit_blocks",
        lambda here, blocks, **how: (sizes.append(len(blocks)), commit(here, blocks, **how))[1],
    )
    calibrate(store.label_set(), RULE, name="together")
    assert sum(sizes) == BLOCKS
    assert sizes[0] == 1, "nothing is known yet about how long a block takes"
    assert max(sizes) > 1
    assert max(sizes) <= BLOCKS // 2, "another process would have been left with nothing"


def test_an_error_in_one_block_keeps_the_others_of_its_group(store):
    class OneIsDamaged(BlockSource):
        def arrays(self, leased):
            if leased.block == 3:
                raise DamagedShard("block 3 is damaged")
            return MadeBlock(leased=leased, shards=lambda: [regions()], num_images=4)

    layout = store.group_specs(GROUP)[1]
    with pytest.raises(DamagedShard, match="block 3"):
        work_through(OneIsDamaged(store=store, group=GROUP, layout=layout, blocks=range(BLOCKS)))
    assert {0, 1, 2} <= set(committed(store))
    assert 3 not in committed(store)
    assert len(mask_files(store)) == len(committed(store)), "a temporary file was left"
    assert store.catalogue.leases.live(GROUP) == []


def test_a_disk_that_refuses_commits_nothing_of_the_group(store, monkeypatch):
    blocks = [staged(store, lease) for lease in acquire(store, 3)]
    real, calls = labelstore.arrays.durable.publish, []

    def refuses(temporary, final):
        calls.append(final)
        if len(calls) == 2:
            raise StorageError(f"{final}: the disk refused")
        real(temporary, final)

    monkeypatch.setattr(labelstore.arrays.durable, "publish", refuses)
    with pytest.raises(StorageError):
        commit_blocks(store, blocks)
    assert committed(store) == []
    assert not [name for name in mask_files(store) if name.endswith(".tmp")]
    monkeypatch.undo()
    store.catalogue.leases.release(*(block.lease for block in blocks))
    assert calibrate(store.label_set(), RULE, name="together").is_complete
    assert len(assert_ledger_is_disk(store)) == BLOCKS


@given(items=st.lists(st.integers(), max_size=20), threads=st.integers(1, 4))
def test_map_in_threads_is_map(items, threads):
    assert list(map_in_threads(str, items, threads=threads)) == list(map(str, items))


def test_map_in_threads_begins_nothing_after_an_error():
    begun = []

    def work(item):
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        return item

    running = threading.active_count()
    with pytest.raises(ValueError, match="one"):
        list(map_in_threads(work, range(1000)))
    assert len(begun) < 10
    assert threading.active_count() == running
