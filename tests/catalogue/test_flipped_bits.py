"""No flipped bit of the catalogue's file changes what a read returns."""

from __future__ import annotations

import os
import random
import sqlite3

import pytest

from labelstore.catalogue import Catalogue, LabelSetRow, PlanRow
from labelstore.errors import DamagedShard, RejectedInput, StorageError, StoreNotFound

FLIPS = int(os.environ.get("LABELSTORE_FLIPS", "60"))


def fill(url, shard_row):
    with Catalogue.create(url, uuid="u", clock=lambda: 0.0) as catalogue:
        catalogue.add_classes(["cat", "dog"])
        keys = [f"cat/{at:05d}.jpg" for at in range(150)]
        catalogue.images.add(keys, [0] * 150, range(150), range(150))
        catalogue.plans.add(
            PlanRow(
                name="p",
                num_crops=8,
                images_per_shard=4,
                crops_per_shard=4,
                crops_per_chunk=2,
                stored=True,
                parameters={"seed": 0},
            )
        )
        catalogue.label_sets.add(
            LabelSetRow(
                name="a", plan="p", teacher="t", num_classes=2, codec={"name": "ms"}, uuid="u"
            )
        )
        for block in range(8):
            lease = catalogue.leases.acquire("labels/a", 8, "x", 10, done=2)
            rows = [shard_row(block=block, crop_shard=at) for at in (0, 1)]
            catalogue.ledger.commit(lease, rows, lambda: None)
        catalogue.metadata.finish(token=catalogue.metadata.begin({"zarr.json": (None, "a" * 64)}))


def everything(url):
    with Catalogue.open(url, clock=lambda: 0.0) as catalogue:
        num_images = catalogue.images.num_images()
    with Catalogue.open(url, clock=lambda: 0.0) as catalogue:
        return (
            catalogue.uuid,
            num_images,
            catalogue.classes(),
            catalogue.images.rows(),
            {name: column.tolist() for name, column in catalogue.images.columns().items()},
            catalogue.ledger.counts(),
            catalogue.images.find([f"cat/{at:05d}.jpg" for at in (0, 42, 149, 150)]),
            catalogue.plans.all(),
            catalogue.label_sets.all(),
            catalogue.masks.all(),
            catalogue.ledger.shards("labels/a"),
            catalogue.ledger.committed("labels/b"),
            catalogue.leases.live("labels/a"),
            catalogue.metadata.digests(),
        )


@pytest.mark.slow
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path, shard_row):
    whole = tmp_path / "whole.db"
    fill(f"sqlite:///{whole}", shard_row)
    expected = everything(f"sqlite:///{whole}")
    data = whole.read_bytes()
    # Most of the file is free space inside pages; a flip there may pass, so take bytes that hold something.
    used = [at for at, byte in enumerate(data) if byte]
    rng = random.Random(0)
    noticed = 0
    for _ in range(FLIPS):
        bit = rng.choice(used) * 8 + rng.randrange(8)
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path = tmp_path / "flipped.db"
        path.write_bytes(flipped)
        try:
            found = everything(f"sqlite:///{path}")
        except (DamagedShard, StoreNotFound, RejectedInput):  # the last for a flip in the schema
            noticed += 1
        except StorageError:
            # The header's file format versions: a file that claims to be read-only or of a newer SQLite
            assert bit // 8 < 100
            noticed += 1
        else:
            assert found == expected, f"bit {bit}"
    assert noticed > FLIPS / 2


def test_a_changed_row_a_missing_row_and_an_added_row_are_damage(tmp_path, shard_row):
    whole = tmp_path / "whole.db"
    fill(f"sqlite:///{whole}", shard_row)
    for statement, table in [
        ("UPDATE image_blocks SET class_id = mtime_ns WHERE block = 0", "image_blocks"),
        ("DELETE FROM shards WHERE block = 3 AND crop_shard = 0", "shards"),
        ("INSERT INTO classes VALUES (2, 'eel')", "classes"),
        ("UPDATE leases SET fence = 9 WHERE block = 0", "leases"),
        ("UPDATE image_blocks SET bad = '' WHERE block = 0", "image_blocks"),
        ("UPDATE digests SET digest = 'x' WHERE table_name = 'plans'", "digests"),
    ]:
        path = tmp_path / "changed.db"
        path.write_bytes(whole.read_bytes())
        raw = sqlite3.connect(path)
        raw.execute(statement)
        raw.commit()
        raw.close()
        with (
            Catalogue.open(f"sqlite:///{path}") as catalogue,
            pytest.raises(DamagedShard, match=f"table {table}"),
        ):
            catalogue.verify_digests()
