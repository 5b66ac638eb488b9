"""Processes that share blocks: who is dead, who is only slow, and what becomes of a block whose lease was lost."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from labelstore import MarginalSmoothing
from labelstore.calibration import RegionThresholds, calibrate
from labelstore.commit import block_jobs, worker
from labelstore.commit import lease_keeper as leases
from labelstore.commit.lease_keeper import LeaseKeeper, Patience, is_dead, owner_name
from labelstore.commit.staging import BlockArrays, write_block
from labelstore.errors import ConflictError
from labelstore.testing.filled_store import filled_store
from tests.store.conftest import mask_row

RULE = RegionThresholds(low=0.25, middle=0.4, top=0.9)
BLOCKS = 6


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("waiting") / "s.labels"
    dense = np.random.default_rng(2).dirichlet(np.full(6, 0.3), (BLOCKS * 2, 4)).astype("f4")
    filled_store(path, dense, MarginalSmoothing(k=3), images_per_shard=2).close()
    return path


@pytest.mark.slow
def test_a_lease_that_was_lost_does_not_end_the_work(store, monkeypatch):
    stage, lost = block_jobs.stage_block, []

    def while_the_lease_is_lost(here, lease, *args, **options):
        if not lost:
            here.catalogue.leases.release(lease)
            lost.append(here.catalogue.leases.acquire(lease.group, [lease.block], "other", 60.0, 1))
            here.catalogue.leases.release(*lost)  # and the other one gave it up
        return stage(here, lease, *args, **options)

    monkeypatch.setattr(block_jobs, "stage_block", while_the_lease_is_lost)
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.0)
    assert calibrate(store.label_set(), RULE, name="m").is_complete
    assert lost


def test_a_helper_waits_as_long_as_the_other_gets_on(store, monkeypatch):
    """Three sleeps of half a second per block of the other's, and patience for one second without any."""
    labels = store.label_set()
    row = mask_row("m", RULE, num_crops=4)
    store.catalogue.masks.add(row)
    store.write_metadata()
    keeper = LeaseKeeper(store.catalogue, "masks/m", BLOCKS, 1)
    held = keeper.acquire_blocks(BLOCKS)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) % 3 == 0 and held:
            lease = held.pop(0)
            codes = RULE.regions(labels.max_probability(lease.block))
            shard = BlockArrays(group="masks/m", crop_shard=0, arrays={"region": codes})
            write_block(store, lease, [shard], num_images=2)
            keeper.forget(lease.block)

    monkeypatch.setattr(leases.time, "sleep", sleep)
    monkeypatch.setattr(worker, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(worker, "MOST_POLL_SECONDS", 0.5)  # otherwise ever longer
    mask = calibrate(labels, RULE, name="m")
    keeper.close()
    assert mask.is_complete
    assert len(slept) == 3 * BLOCKS


class _Leases:
    """A catalogue as far as waiting looks at it."""

    def __init__(self):
        self.leases_of_all = []
        self.leases = self

    def held(self, group):
        return self.leases_of_all

    def now(self):
        return 0.0


def test_a_renewed_lease_is_a_sign_of_life_and_one_of_another_block_is_not(monkeypatch, store):
    monkeypatch.setattr(leases.time, "sleep", lambda seconds: None)
    mine, other = (
        store.catalogue.leases.acquire("masks/x", [block], f"o{block}", 60.0) for block in (0, 1)
    )
    catalogue = _Leases()
    patience = Patience(catalogue, "masks/x")

    def wait(renewed, other_renewed):
        for turn in range(20):
            catalogue.leases_of_all = [
                replace(mine, expires=float(turn // 3) if renewed else 0.0),
                replace(other, expires=float(turn) if other_renewed else 0.0),
            ]
            patience.wait([0], seconds=1.0, most=3.0)

    wait(renewed=True, other_renewed=False)
    with pytest.raises(ConflictError, match=r"waited .* s for image block 0, .*does not finish it"):
        wait(renewed=False, other_renewed=True)


def test_a_process_that_cannot_be_looked_at_is_not_dead(monkeypatch):
    mine = owner_name()
    host, namespace, boot, pid, started, noise = mine.split("/")
    gone = f"{host}/{namespace}/{boot}/4194305/1/{noise}"
    another = f"{host}/{namespace}/{boot}/{pid}/{int(started) + 1}/{noise}"
    assert [is_dead(owner) for owner in (mine, gone, another)] == [False, True, True]
    read = leases._read_text
    hidden = lambda path: "" if path.endswith("/stat") else read(path)
    with monkeypatch.context() as patch:
        # mounted with hidepid: the files of other users' processes are not there
        patch.setattr(leases, "_read_text", hidden)
        assert [is_dead(owner) for owner in (mine, gone, another)] == [False, True, False]

        def not_allowed(pid, signal):
            raise PermissionError

        patch.setattr(os, "kill", not_allowed)
        assert not is_dead(gone)
    for crafted in ("x", "-1", "0", "9" * 40, ""):
        owner = f"{host}/{namespace}/{boot}/{crafted}/1/{noise}"
        assert is_dead(owner) == (crafted == "9" * 40)


def test_a_machine_that_cannot_be_told_from_others_knows_no_dead(monkeypatch):
    monkeypatch.setattr(leases, "_read_text", lambda path: "")
    monkeypatch.setattr(leases, "_read_link", lambda path: "")
    host = leases.owner_name().partition("/")[0]
    assert not is_dead(f"{host}///4194305//abc")
