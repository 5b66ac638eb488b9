"""Writing an image block: encode in memory, stage durably, publish inside the commit transaction.

The protocol is numbered in the steps below; a crop is committed if and only if its ledger row is, and
every ledger row names bytes that are on disk and match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from labelstore.arrays.durable import StagedFiles
from labelstore.catalogue.records import Lease, ShardRow

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from labelstore.store.store import Store


@dataclass(frozen=True, kw_only=True)
class BlockArrays:
    """One crop shard of one group, still as arrays."""

    group: str
    """"crops/PLAN", "labels/NAME" or "masks/NAME"."""
    crop_shard: int
    arrays: Mapping[str, NDArray[Any]]
    """Field name -> (images of the block, crops of the shard, ...)."""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What decoding taught about the images of a block; recorded in the same transaction."""

    decoded: Sequence[tuple[int, int, int, bytes]] = ()
    """(image row, width, height, digest)."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Image row -> why it was left out."""


def write_block(
    store: Store,
    lease: Lease,
    shards: Sequence[BlockArrays],
    *,
    facts: ImageFacts | None = None,
    num_images: int,
    seconds: float = 0.0,
    device: str = "",
) -> None:
    """Commit every shard of one leased image block, all or none.

    `num_images` counts the images that have labels. LeaseLost if the lease is not ours any more;
    StorageError if the disk refuses. In both cases nothing was committed and nothing good was touched.
    """
    facts = facts or ImageFacts()
    rows: list[ShardRow] = []
    own = sum(shard.group == lease.group for shard in shards)  # they share the seconds
    with StagedFiles() as staged:
        for shard in shards:
            specs = list(store.group(shard.group).specs.values())
            files = store.arrays.encode_shard(specs, (lease.block, shard.crop_shard), shard.arrays)
            for file in files:
                # temporary name in the final folder, length checked, fsync; no rename yet
                staged.stage(store.arrays.root / file.record.key, file.data)
            rows.append(
                ShardRow(
                    group=shard.group,
                    block=lease.block,
                    crop_shard=shard.crop_shard,
                    files=tuple(file.record for file in files),
                    num_images=num_images,
                    fence=lease.fence,
                    seconds=seconds / own if shard.group == lease.group else 0.0,
                    device=device,
                )
            )

        def record_facts(connection: Connection) -> None:
            store.catalogue.record_image_facts(connection, facts.decoded)
            for image, reason in facts.bad.items():
                store.catalogue.mark_bad(connection, image, reason)

        # renames inside the transaction: after the lease was found to be ours and the shards not to exist yet
        store.catalogue.commit(lease, rows, staged.publish, record_facts)
