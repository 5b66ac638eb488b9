"""Who is labelling what: crops that have labels, workers that hold a lease, rate and time left, from ledger and
spool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from labelstore.commit.spool import spooled_crops
from labelstore.store.layout import label_layout

if TYPE_CHECKING:
    from labelstore.catalogue.records import ShardRow
    from labelstore.store import Store

RECENT_SHARDS = 16
"""Newest shards of each device: what the rate is taken from."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How far a label set is."""

    label_set: str
    crops: int
    """Crops with labels, committed or in a spool."""
    committed_crops: int
    total_crops: int
    workers: tuple[str, ...]
    """Owners of leases that have not expired: host, process, start."""
    crops_per_second: float | None
    """Rate of all workers together, from the latest shards; None where no worker runs or no shard is made yet."""
    seconds_left: float | None


def work(store: Store, label_set: str) -> Work:
    """Progress of one label set; also while other processes write it."""
    row = store.label_set_row(label_set)
    layout = label_layout(row, store.plan(row.plan), store.num_rows)
    group = f"labels/{label_set}"
    shards = [
        shard
        for shard in store.catalogue.ledger.shards(group)
        if shard.block < layout.num_blocks and shard.crop_shard < layout.num_crop_shards
    ]
    # rows that no image has lie in blocks too: images that are added begin a new one
    images = [store.num_images_in(layout.rows(block)) for block in range(layout.num_blocks)]
    committed: dict[int, int] = {}
    for shard in shards:
        crops = images[shard.block] * layout.crops_per_shard
        committed[shard.block] = committed.get(shard.block, 0) + crops
    done = dict(committed)
    for block, crops in spooled_crops(store.path / "spool" / label_set, row.uuid).items():
        whole = images[block] * layout.num_crops if block < layout.num_blocks else 0
        done[block] = min(whole, done.get(block, 0) + crops)
    total = sum(images) * layout.num_crops
    owners = sorted({lease.owner for lease in store.catalogue.leases.live(group)})
    rate = recent_rate(shards, layout.crops_per_shard)
    together = rate * len(owners) if rate and owners else None
    crops = sum(done.values())
    return Work(
        label_set=label_set,
        crops=crops,
        committed_crops=sum(committed.values()),
        total_crops=total,
        workers=tuple(owners),
        crops_per_second=together,
        seconds_left=None if together is None else (total - crops) / together,
    )


def recent_rate(shards: list[ShardRow], crops_per_shard: int) -> float | None:
    """Crops per second of one worker, over the shards that were committed last; None where no time is known."""
    newest = sorted(shards, key=lambda shard: shard.committed)[-RECENT_SHARDS:]
    seconds = sum(shard.seconds for shard in newest)
    crops = sum(shard.num_images for shard in newest) * crops_per_shard
    return crops / seconds if seconds > 0 and crops else None
