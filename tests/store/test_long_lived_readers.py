"""A reader that stays open while others repair, drop and make anew: what it reads is what the store holds, or an
error."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import labelstore
from labelstore import Full, MarginalSmoothing
from labelstore.arrays.durable import StagedFiles
from labelstore.care.dropping import drop
from labelstore.codecs import top_k
from labelstore.errors import ConflictError, DamagedShard
from labelstore.testing.filled_store import add_label_set, fill_blocks
from tests.kept_stores import kept_store

CODEC = MarginalSmoothing(k=3, class_ids="plain")
DENSE = np.random.default_rng(0).dirichlet(np.full(6, 0.3), (8, 4)).astype("f4")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("readers") / "s.labels"
    kept_store(path, DENSE, CODEC, images_per_shard=4).close()
    return path


@pytest.fixture
def path(template, tmp_path):
    shutil.copytree(template, tmp_path / "s.labels")
    return tmp_path / "s.labels"


def repair(path, dense):
    """Other bytes in the place of block 0, and the row that says so, as `repair --whole-shards` does."""
    with labelstore.open(path) as store:
        group = store.group("labels/teacher")
        arrays = CODEC.encode(top_k(dense[:4], 3), 6)
        files = store.arrays.encode_shard(list(group.specs.values()), (0, 0), arrays)
        lease = store.catalogue.leases.acquire("labels/teacher", [0], "repair", 60.0, 2)
        with StagedFiles() as staged:
            for file in files:
                staged.stage(store.arrays.root / file.record.key, file.data)
            row = replace(group.shard(0, 0), files=tuple(file.record for file in files))
            store.catalogue.ledger.replace_shard(lease, row, staged.publish)
        store.catalogue.leases.release(lease)


def again(path, dense, codec):
    """Drop the label set, and make another of its name."""
    with labelstore.open(path) as store:
        drop(store, "label-set", "teacher")
        add_label_set(store, codec, 6, name="teacher")
        fill_blocks(store, dense, name="teacher")


def test_a_repaired_shard_is_read_as_it_is_now(path):
    other = np.roll(DENSE, 1, axis=-1)
    with labelstore.open(path) as reader:
        labels = reader.label_set()
        untouched = labels.dense(1)
        repair(path, other)
        found = labels.dense(0)
        np.testing.assert_array_equal(labels.dense(1), untouched)
    with labelstore.open(path) as fresh:
        np.testing.assert_array_equal(found, fresh.label_set().dense(0))
        assert labelstore.verify(fresh).problems == ()
    assert np.abs(found - other[:4]).max() < 0.3 < np.abs(found - DENSE[:4]).max()


def test_damage_stays_damage(path):
    with labelstore.open(path) as reader:
        labels = reader.label_set()
        for file in (path / "arrays.zarr/labels/teacher/probability").glob("c.0*"):
            data = bytearray(file.read_bytes())
            data[5] ^= 1
            file.write_bytes(data)
        asked = []
        shards = reader.catalogue.ledger.shards
        reader.catalogue.ledger.shards = lambda group: asked.append(group) or shards(group)
        with pytest.raises(DamagedShard, match="images 0-3"):
            labels.dense(0)
        assert asked == ["labels/teacher"]  # looked again once, and found the same row


@pytest.mark.parametrize("codec", [CODEC, Full()], ids=["the same codec", "another"])
def test_a_label_set_made_anew_is_not_read_as_the_old_one(path, codec):
    with labelstore.open(path) as reader:
        labels = reader.label_set()
        other = np.roll(DENSE, 1, axis=-1)
        again(path, other, codec)
        with pytest.raises(ConflictError, match="open the store again") as error:
            labels.dense(0)
        assert "\n" not in str(error.value)
        # the store itself need not be opened again to look at the new one
        found = reader.label_set().dense(0)
    with labelstore.open(path) as fresh:
        np.testing.assert_array_equal(found, fresh.label_set().dense(0))


def test_a_block_committed_to_a_label_set_made_anew_is_not_read_as_the_old_one(tmp_path):
    path = tmp_path / "s.labels"
    kept_store(path, DENSE, CODEC, images_per_shard=4, blocks=[0]).close()
    with labelstore.open(path) as reader:
        labels = reader.label_set()
        # the same fields, which the old codec would take for probabilities that need no scaling
        again(path, np.roll(DENSE, 1, axis=-1), labelstore.MarginalRenorm(k=3, class_ids="plain"))
        with pytest.raises(ConflictError, match="labels/teacher was dropped"):
            labels.dense(1)


def test_a_label_set_that_was_dropped_is_said_to_be(path):
    with labelstore.open(path) as reader:
        labels = reader.label_set()
        with labelstore.open(path) as store:
            drop(store, "label-set", "teacher")
        with pytest.raises(ConflictError, match="labels/teacher was dropped"):
            labels.dense(0)
