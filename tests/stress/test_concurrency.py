"""R11, R12: an owner who slept past the lease, and readers beside a writer."""

import pytest

from labelstore.care.verification import verify
from labelstore.catalogue import Catalogue
from labelstore.errors import LeaseLost
from labelstore.store import Store, open_store
from labelstore.testing.filled_store import fill_block
from tests.catalogue.conftest import Clock
from tests.stress.conftest import IMAGES_PER_SHARD, make_empty, told
from tests.stress.workers import GROUP, soft_labels


def opened(path, clock) -> Store:
    """One worker's own handle, on a clock that the test moves."""
    catalogue = Catalogue.open(f"sqlite:///{path / 'catalogue.db'}", clock=clock)
    with open_store(path) as store:
        return Store(path, catalogue, store.arrays)


@pytest.mark.sample(1)
@pytest.mark.parametrize("when", ["before the other's commit", "after it"])
def test_a_zombie_changes_nothing(empty, scale, matrix, when):
    """R11."""
    path, clock = empty(), Clock()
    zombie, heir = opened(path, clock), opened(path, clock)
    labels = soft_labels(zombie.num_rows, zombie.num_crops)
    others = labels[..., ::-1].copy()
    for block in range(6 if scale >= 1 else 2):
        asleep = zombie.catalogue.leases.acquire(GROUP, [block], "zombie", 10, 2)
        clock.seconds += 11
        lease = heir.catalogue.leases.acquire(GROUP, [block], "heir", 10, 2)
        assert lease.fence == asleep.fence + 1
        if when == "before the other's commit":
            with pytest.raises(LeaseLost):
                fill_block(zombie, asleep, others)
            fill_block(heir, lease, labels)
        else:
            fill_block(heir, lease, labels)
            with pytest.raises(LeaseLost):
                fill_block(zombie, asleep, others)
        heir.catalogue.leases.release(lease)
        rows = heir.catalogue.ledger.shards(GROUP)
        assert {row.fence for row in rows if row.block == block} == {lease.fence}
    report = verify(path, "deep")
    assert report.is_sound
    assert report.leftovers == ()
    with open_store(path) as store:
        rows = range(store.label_set().layout.rows(block).stop)
        found = store.label_set().recover(rows).argmax(-1)
        assert (found == labels.argmax(-1)[rows.start : rows.stop]).all()
    matrix.record("R11", zombies=block + 1, overwritten=0)


def test_readers_beside_a_writer(nursery, scale, matrix, tmp_path):
    """R12."""
    wanted = max(50, round(100 * scale))
    path = make_empty(tmp_path / "store", "zarr", max(10, round(25 * scale)) * IMAGES_PER_SHARD)
    reads = [tmp_path / f"read{n}" for n in range(4)]
    readers = [
        nursery.start("read", result, path, wanted, seed) for seed, result in enumerate(reads)
    ]
    writer = nursery.start("write", tmp_path / "written", path, "", 0.05)
    assert [nursery.wait(pid) for pid in readers] == [0] * 4
    assert nursery.wait(writer) == 0
    assert told(tmp_path / "written")[-1]["code"] == 0
    for result in reads:
        (record,) = told(result)
        assert (record["code"], record["wrong"]) == (0, 0), record
        assert record["read"] >= wanted
    assert verify(path).is_sound
    reads_done = sum(record["read"] for result in reads for record in told(result))
    matrix.record("R12", readers=4, reads=reads_done, wrong=0, locked=0)
