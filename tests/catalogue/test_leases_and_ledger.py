from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.arrays.shard_files import ShardFile
from labelstore.catalogue.ledger import pack_files, unpack_files
from labelstore.errors import ConflictError, DamagedShard, LeaseLost, UsageError


def nothing():
    pass


class Published:
    """Counts calls of publish."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1


def test_blocks_are_leased_in_order_and_to_one_owner(catalogue):
    assert [catalogue.leases.acquire("labels/a", 2, owner, 10).block for owner in "xy"] == [0, 1]
    assert catalogue.leases.acquire("labels/a", 2, "z", 10) is None
    assert catalogue.leases.acquire("labels/b", 2, "z", 10).block == 0
    assert catalogue.leases.acquire("labels/a", [7, 5], "z", 10).block == 7


def test_an_owner_is_not_granted_its_own_live_lease_twice(catalogue):
    catalogue.leases.acquire("labels/a", 1, "x", 10)
    assert catalogue.leases.acquire("labels/a", 1, "x", 10) is None


@pytest.mark.sample(1)
def test_complete_blocks_are_passed_over_a_few_at_a_time(catalogue, shard_row, monkeypatch):
    """However many are looked at together; what is found complete is told, and not looked at again."""
    for first, most in ((1, 2), (2, 5), (64, 4096)):
        monkeypatch.setattr("labelstore.catalogue.block_leases.FIRST_LOOK", first)
        monkeypatch.setattr("labelstore.catalogue.block_leases.MOST_LOOK", most)
        group = f"labels/{first}"
        for block in (0, 1, 2, 3, 5):
            (lease,) = catalogue.leases.acquire_blocks(group, [block], "x", 10, count=1)
            catalogue.ledger.commit(lease, [shard_row(group=group, block=block)], nothing)
            catalogue.leases.release(lease)
        assert catalogue.ledger.committed_of(group, [2, 4, 5]) == {2: (0,), 5: (0,)}
        held = catalogue.leases.acquire(group, [6], "y", 10)
        assert catalogue.leases.held(group) == catalogue.leases.live(group) == [held]
        complete = {1}
        granted = catalogue.leases.acquire_blocks(group, 12, "x", 10, count=3, complete=complete)
        assert [(lease.block, lease.fence) for lease in granted] == [(4, 1), (7, 1), (8, 1)]
        assert complete == {0, 1, 2, 3, 5}
        catalogue.leases.release(*granted)
        again = catalogue.leases.acquire_blocks(group, 9, "z", 10, count=9, complete=complete)
        assert [(lease.block, lease.fence) for lease in again] == [(4, 2), (7, 2), (8, 2)]
        # who takes a block as complete has it from an earlier look
        catalogue.leases.release(held)
        complete.add(6)
        assert not catalogue.leases.acquire_blocks(group, 9, "z", 10, count=1, complete=complete)


def test_a_lease_ends_at_its_expiry_and_the_fence_grows(catalogue, clock):
    first = catalogue.leases.acquire("labels/a", 1, "x", 10)
    clock.seconds += 9.5
    assert catalogue.leases.acquire("labels/a", 1, "y", 10) is None
    clock.seconds += 0.5
    second = catalogue.leases.acquire("labels/a", 1, "y", 10)
    catalogue.leases.release(second)
    third = catalogue.leases.acquire("labels/a", 1, "x", 10)
    assert [first.fence, second.fence, third.fence] == [1, 2, 3]


def test_renewal_moves_the_expiry_and_is_refused_when_late(catalogue, clock):
    lease = catalogue.leases.acquire("labels/a", 1, "x", 10)
    clock.seconds += 5
    lease = catalogue.leases.renew(lease, 10)
    assert lease.expires == clock.seconds + 10
    assert catalogue.leases.live("labels/a") == [lease]
    clock.seconds += 10
    with pytest.raises(LeaseLost, match=r"expired 0\.0 s ago"):
        catalogue.leases.renew(lease, 10)


def test_releasing_a_lost_lease_leaves_the_new_owner_alone(catalogue, clock):
    old = catalogue.leases.acquire("labels/a", 1, "x", 10)
    clock.seconds += 10
    new = catalogue.leases.acquire("labels/a", 1, "y", 10)
    catalogue.leases.release(old)
    assert catalogue.leases.live("labels/a") == [new]


@pytest.mark.parametrize("ttl", [0, -1])
def test_a_lease_lasts(catalogue, ttl):
    with pytest.raises(UsageError):
        catalogue.leases.acquire("labels/a", 1, "x", ttl)


def test_a_commit_can_be_read_back(catalogue, clock, shard_row):
    lease = catalogue.leases.acquire("labels/a", 1, "x", 10, done=2)
    rows = [replace(shard_row(crop_shard=at), seconds=1.5, device="cpu") for at in (0, 1)]
    publish = Published()
    catalogue.ledger.commit(lease, rows, publish)
    expected = [replace(row, fence=lease.fence, committed=clock.seconds) for row in rows]
    assert publish.times == 1
    assert catalogue.ledger.shards("labels/a") == expected
    assert catalogue.ledger.committed("labels/a") == {0: (0, 1)}
    assert catalogue.ledger.counts() == {"labels/a": (2, 2)}


def test_a_block_is_complete_when_all_its_crop_shards_are(catalogue, shard_row):
    lease = catalogue.leases.acquire("labels/a", 1, "x", 10, done=2)
    catalogue.ledger.commit(lease, [shard_row(crop_shard=0)], nothing)
    catalogue.leases.release(lease)
    assert catalogue.leases.acquire("labels/a", 1, "x", 10, done=1) is None
    lease = catalogue.leases.acquire("labels/a", 1, "x", 10, done=2)
    catalogue.ledger.commit(lease, [shard_row(crop_shard=1)], nothing)
    catalogue.leases.release(lease)
    assert catalogue.leases.acquire("labels/a", 1, "x", 10, done=2) is None


def test_a_zombie_renames_nothing(catalogue, clock, shard_row):
    zombie = catalogue.leases.acquire("labels/a", 1, "x", 10)
    clock.seconds += 10
    publish = Published()
    with pytest.raises(LeaseLost, match="expired"):
        catalogue.ledger.commit(zombie, [shard_row()], publish)
    heir = catalogue.leases.acquire("labels/a", 1, "y", 10)
    with pytest.raises(LeaseLost, match="taken over by y"):
        catalogue.ledger.commit(zombie, [shard_row()], publish)
    catalogue.ledger.commit(heir, [shard_row(content=b"heir")], nothing)
    catalogue.leases.release(heir)
    with pytest.raises(LeaseLost, match="given up"):
        catalogue.ledger.commit(replace(heir), [shard_row(crop_shard=1)], publish)
    assert publish.times == 0
    assert [row.fence for row in catalogue.ledger.shards("labels/a")] == [heir.fence]


def test_a_lease_that_was_never_granted_is_refused(catalogue, shard_row):
    lease = catalogue.leases.acquire("labels/a", 1, "x", 10)
    with pytest.raises(LeaseLost, match="never granted"):
        catalogue.ledger.commit(replace(lease, block=1), [shard_row(block=1)], nothing)


def test_a_committed_shard_is_never_replaced(catalogue, shard_row):
    lease = catalogue.leases.acquire("labels/a", 1, "x", 10)
    catalogue.ledger.commit(lease, [shard_row()], nothing)
    publish = Published()
    with pytest.raises(ConflictError, match="committed already"):
        catalogue.ledger.commit(lease, [shard_row(crop_shard=1), shard_row()], publish)
    assert publish.times == 0
    assert catalogue.ledger.committed("labels/a") == {0: (0,)}


def test_label_sets_of_one_plan_share_their_crops(catalogue, shard_row):
    crops = shard_row(group="crops/p", content=b"boxes")
    for group in ("labels/a", "labels/b"):
        lease = catalogue.leases.acquire(group, 1, "x", 10)
        catalogue.ledger.commit(lease, [crops, shard_row(group=group)], nothing)
    assert catalogue.ledger.counts() == {"crops/p": (1, 5), "labels/a": (1, 1), "labels/b": (1, 1)}
    lease = catalogue.leases.acquire("labels/c", 1, "x", 10)
    publish = Published()
    with pytest.raises(ConflictError, match="other crops"):
        catalogue.ledger.commit(lease, [shard_row(group="crops/p", content=b"other")], publish)
    assert publish.times == 0


@pytest.mark.parametrize("change", [{"block": 1}, {"group": "labels/b"}, {"group": "masks/a"}])
def test_a_lease_covers_its_own_block_only(catalogue, shard_row, change):
    lease = catalogue.leases.acquire("labels/a", 1, "x", 10)
    with pytest.raises(UsageError, match="not covered"):
        catalogue.ledger.commit(lease, [replace(shard_row(), **change)], nothing)


@pytest.mark.parametrize("when", ["publish", "extra"])
def test_nothing_is_committed_after_an_error(catalogue, shard_row, when):
    catalogue.images.add(["a/1"], [0], [1], [1])
    lease = catalogue.leases.acquire("labels/a", 1, "x", 10)

    def fail(*_):
        raise OSError(28, "No space left on device")

    def extra(conn):
        catalogue.images.record_facts(conn, [(0, 3, 4, bytes(16))])
        if when == "extra":
            fail()

    with pytest.raises(OSError, match="No space left"):
        catalogue.ledger.commit(lease, [shard_row()], fail if when == "publish" else nothing, extra)
    assert catalogue.ledger.shards("labels/a") == []
    assert catalogue.images.rows()[0].width is None
    when = "never"
    catalogue.ledger.commit(lease, [shard_row()], nothing, extra)
    assert catalogue.images.rows()[0].width == 3
    catalogue.verify_digests()


def test_repair_replaces_a_row_under_a_lease(catalogue, clock, shard_row):
    lease = catalogue.leases.acquire("labels/a", 1, "x", 10)
    catalogue.ledger.commit(lease, [shard_row()], nothing)
    catalogue.ledger.replace_shard(lease, shard_row(content=b"mended"), nothing)
    (mended,) = catalogue.ledger.shards("labels/a")
    assert mended.files == shard_row(content=b"mended").files
    clock.seconds += 10
    with pytest.raises(LeaseLost):
        catalogue.ledger.replace_shard(lease, shard_row(), nothing)
    catalogue.verify_digests()


def test_a_ledger_row_costs_less_than_a_fiftieth_byte_per_crop():
    rng = np.random.default_rng(0)
    files = tuple(
        ShardFile(
            key=f"labels/resnet50/{field}/c/1250/9/0",
            size=int(rng.integers(1 << 20)),
            sha256=hashlib.sha256(rng.bytes(8)).hexdigest(),
            chunks={f"labels/resnet50/{field}": tuple(rng.integers(1 << 32, size=5).tolist())},
        )
        for field in ("class_id", "class_table", "class_escape", "probability", "tail")
    )
    packed = pack_files(files)
    assert unpack_files(packed) == files
    assert len(packed) < 0.02 * 1024 * 50


@given(st.binary(max_size=60))
def test_files_that_were_not_packed_are_damage(data):
    with pytest.raises(DamagedShard):
        unpack_files(data)
