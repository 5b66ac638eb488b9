"""A label set or mask that is dropped, or created again under its name, gets nothing that was made for the old one."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

import labelstore
from labelstore.calibration import RegionThresholds, calibrate
from labelstore.care import dropping
from labelstore.care.dropping import drop
from labelstore.catalogue.block_leases import mask_identity
from labelstore.codecs import MarginalRenorm, MarginalSmoothing, top_k
from labelstore.commit import block_jobs
from labelstore.commit.lease_keeper import LeaseKeeper
from labelstore.commit.spool import LabelledImage, Spool, read_spools, remove_spools, spooled_crops
from labelstore.commit.staging import BlockArrays, write_block
from labelstore.errors import ConflictError, LeaseLost
from labelstore.labelling.deriving import derive
from labelstore.testing.filled_store import add_label_set, fill_blocks
from tests.kept_stores import kept_store
from tests.store.conftest import mask_row

GROUP = "labels/teacher"
CODEC = MarginalSmoothing(k=3, class_ids="plain")
OLD = np.random.default_rng(0).dirichlet(np.full(6, 0.3), (8, 4)).astype(np.float32)
NEW = np.roll(OLD, 1, axis=-1)
RULE = RegionThresholds(low=0.2, middle=0.3, top=0.9)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("dropped") / "s.labels"
    kept_store(path, OLD, CODEC, images_per_shard=4, blocks=[0]).close()
    return path


@pytest.fixture
def worker(store):
    """Another process's view, with everything in memory that it read before the drop."""
    with labelstore.open(store.path) as opened:
        opened.group(GROUP)
        yield opened


def commit_old(worker, lease):
    rows = worker.group(GROUP).layout.rows(lease.block)
    arrays = CODEC.encode(top_k(OLD[rows.start : rows.stop], 3), 6)
    shards = [BlockArrays(group=GROUP, crop_shard=0, arrays=arrays)]
    write_block(worker, lease, shards, num_images=len(rows))


def make_anew(store):
    add_label_set(store, CODEC, 6, name="teacher", teacher="other")


def assert_new(store):
    fill_blocks(store, NEW, name="teacher")
    labels = store.label_set("teacher")
    assert labels.row.teacher == "other"
    assert labels.is_complete
    np.testing.assert_array_equal(labels.recover(range(8)).argmax(-1), NEW.argmax(-1))
    assert labelstore.verify(store, "deep").is_sound


@pytest.mark.sample(1)
@pytest.mark.parametrize("again", [False, True])
def test_a_lease_from_before_the_drop_commits_nothing(store, worker, again):
    lease = worker.catalogue.leases.acquire(GROUP, [1], "worker", 60.0)
    store.catalogue.groups.drop(GROUP)
    if again:
        make_anew(store)
    with pytest.raises(LeaseLost, match="created again" if again else "dropped"):
        commit_old(worker, lease)
    with pytest.raises(LeaseLost):
        worker.catalogue.leases.renew(lease, 60.0)
    assert store.catalogue.ledger.shards(GROUP) == []
    worker.catalogue.leases.release(lease)  # whoever comes next need not wait for it
    if not again:
        make_anew(store)
    assert_new(store)


def test_a_worker_between_two_blocks_gets_no_lease_on_another_label_set(store, worker):
    keeper = LeaseKeeper(worker.catalogue, GROUP, 2, 1)
    try:
        drop(store, "label-set", "teacher")
        with pytest.raises(ConflictError, match="dropped while this process"):
            keeper.acquire()
        make_anew(store)
        with pytest.raises(ConflictError, match="created again while this process"):
            keeper.acquire()
        assert store.catalogue.leases.live(GROUP) == []
    finally:
        keeper.close()
    assert_new(store)


def test_a_lease_that_is_granted_while_drop_looks_keeps_it_from_dropping(
    store, worker, monkeypatch
):
    looked = dropping.what_drops

    def then_a_worker_comes(*arguments):
        found = looked(*arguments)
        worker.catalogue.leases.acquire(GROUP, [1], "worker", 60.0)
        return found

    monkeypatch.setattr(dropping, "what_drops", then_a_worker_comes)
    with pytest.raises(ConflictError, match="being written by worker"):
        drop(store, "label-set", "teacher")
    assert store.label_sets == ("teacher",)
    assert [row.block for row in store.catalogue.ledger.shards(GROUP)] == [0]


def test_a_mask_is_its_rule_and_label_set_and_not_its_name(store):
    labels = store.label_set()
    rows = [
        mask_row("m", rule, num_crops=4)
        for rule in (RULE, RegionThresholds(low=0.3, middle=0.4, top=0.9))
    ]
    found = []
    for row in rows:
        store.catalogue.masks.add(row)
        found.append(store.catalogue.groups.identity("masks/m"))
        assert found[-1] == mask_identity(row, labels.row.uuid)
        store.catalogue.groups.drop("masks/m")
    assert store.catalogue.groups.identity("masks/m") == ""
    assert found[0] != found[1]
    assert mask_identity(rows[0], "") != found[0]
    store.catalogue.masks.add(rows[0])
    with store.catalogue.transaction() as connection:
        store.catalogue.masks.change(connection, "m", num_crops=2)
    assert store.catalogue.groups.identity("masks/m") == found[0], "a mask may grow"


def test_calibration_of_a_label_set_that_was_made_anew_is_refused(store):
    labels = store.label_set()
    drop(store, "label-set", "teacher")
    add_label_set(store, CODEC, 6, name="teacher")
    fill_blocks(store, NEW, name="teacher")
    with pytest.raises(ConflictError, match="created again"):
        calibrate(labels, RULE, name="m")
    assert store.catalogue.ledger.shards("masks/m") == []


def test_a_mask_that_is_made_anew_during_calibration_gets_no_codes_of_the_old_rule(
    store, monkeypatch
):
    fill_blocks(store, OLD, name="teacher")
    stage, other = block_jobs.stage_block, RegionThresholds(low=0.4, middle=0.5, top=0.6)

    def while_it_is_made_anew(here, lease, *args, **options):
        if here.catalogue.groups.identity("masks/m") == lease.identity:
            here.catalogue.groups.drop("masks/m")
            here.catalogue.masks.add(replace(first, rule=other.to_record()))
        return stage(here, lease, *args, **options)

    first = mask_row("m", RULE, num_crops=4)
    monkeypatch.setattr(block_jobs, "stage_block", while_it_is_made_anew)
    monkeypatch.setattr("labelstore.commit.worker.POLL_SECONDS", 0.0)
    with pytest.raises(ConflictError, match="created again"):
        calibrate(store.label_set(), RULE, name="m")
    assert store.catalogue.ledger.shards("masks/m") == []


def test_a_variant_that_is_dropped_while_it_is_derived_stays_dropped(store, monkeypatch):
    stage = block_jobs.stage_block

    def while_it_is_dropped(here, *args, **options):
        found = stage(here, *args, **options)
        here.catalogue.groups.drop("labels/mr")
        return found

    monkeypatch.setattr(block_jobs, "stage_block", while_it_is_dropped)
    monkeypatch.setattr("labelstore.commit.worker.POLL_SECONDS", 0.0)
    with pytest.raises(ConflictError, match="dropped"):
        derive(store.label_set(), MarginalRenorm(k=3), name="mr")
    assert store.catalogue.ledger.shards("labels/mr") == []


def spooled(store, uuid, image=4):
    lease = store.catalogue.leases.acquire(GROUP, [1], f"worker of {uuid}", 60.0)
    spool = Spool(store.path / "spool" / "teacher", lease, uuid)
    arrays = {"box": np.zeros((4, 4), "u2"), "probs": np.zeros((4, 6), "f4")}
    spool.append(LabelledImage(image=image, height=1, width=1, digest=b"\0" * 16, arrays=arrays))
    spool.close()
    store.catalogue.leases.release(lease)
    return spool.path


def test_a_spool_is_of_one_label_set_and_not_of_its_name(store):
    folder = store.path / "spool" / "teacher"
    spooled(store, "one", 4)
    spooled(store, "two", 5)
    assert set(read_spools(folder, 1, "one")) == {4}
    assert set(read_spools(folder, 1, "two")) == {5}
    assert read_spools(folder, 1, "three") == read_spools(folder, 0, "one") == {}
    assert spooled_crops(folder, "one") == {1: 4}
    assert spooled_crops(folder, "three") == {}
    assert spooled_crops(folder) == {1: 8}
    remove_spools(folder, 1)
    assert spooled_crops(folder) == {}


@pytest.mark.sample(1)
@pytest.mark.parametrize("at", ["write_metadata", "_remove_files"])
def test_a_killed_drop_leaves_no_labels_to_a_later_label_set(store, monkeypatch, at):
    path = spooled(store, store.label_set_row("teacher").uuid)

    def killed(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dropping if at == "_remove_files" else type(store), at, killed)
        with pytest.raises(KeyboardInterrupt):
            drop(store, "label-set", "teacher")
    assert path.exists()
    with labelstore.open(store.path) as again:
        make_anew(again)
        uuid = again.label_set_row("teacher").uuid
        assert read_spools(path.parent, 1, uuid) == {}
        assert_new(again)


def test_dropping_again_removes_the_spool_of_a_killed_drop(store, monkeypatch):
    path = spooled(store, store.label_set_row("teacher").uuid)
    shutil.rmtree(store.arrays.root / GROUP)
    store.catalogue.groups.drop(GROUP)
    drop(store, "label-set", "teacher")
    assert not path.parent.exists()
    assert list((store.path / "spool").iterdir()) == []
