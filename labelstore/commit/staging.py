"""Writing an image block: encode in memory, stage durably, publish inside the commit transaction.

A crop is committed if and only if its ledger row is, and every ledger row names bytes that are on disk and
match. Blocks that take less time to compute than a transaction takes are staged one by one and committed together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from labelstore.arrays.durable import StagedFiles, publish_together, storage_errors
from labelstore.catalogue.records import Lease, ShardRow
from labelstore.errors import ConflictError, LeaseLost

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from labelstore.arrays.array_spec import ArraySpec
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


@dataclass(frozen=True, kw_only=True)
class StagedBlock:
    """One image block whose files are on disk under temporary names, waiting for its commit."""

    lease: Lease
    rows: Sequence[ShardRow]
    files: StagedFiles
    facts: ImageFacts
    replaces: bool = False
    """`repair` only: the shards are committed already, and their damaged files are replaced."""
    removes: Sequence[Path] = ()
    """`repair` only: files that the shards have no more."""


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
    staged = stage_block(
        store, lease, shards, facts=facts, num_images=num_images, seconds=seconds, device=device
    )
    (refused,) = commit_blocks(store, [staged])
    if refused is not None:
        raise refused


def stage_block(
    store: Store,
    lease: Lease,
    shards: Sequence[BlockArrays],
    *,
    facts: ImageFacts | None = None,
    num_images: int,
    seconds: float = 0.0,
    device: str = "",
    known: dict[str, Sequence[ArraySpec]] | None = None,
) -> StagedBlock:
    """Everything of `write_block` but the commit: encoded, written and fsynced under temporary names.

    LeaseLost if the lease is lost already; the commit looks again. A job of many blocks gives the same `known` with
    each: arrays of groups as they were when the first was staged. Where a group was dropped since, or another got its
    name, the commit refuses the lease.
    """
    rows: list[ShardRow] = []
    own = sum(shard.group == lease.group for shard in shards)  # they share the seconds
    specs_of = {} if known is None else known
    if new := {shard.group for shard in shards} - specs_of.keys():
        with store.catalogue.reading():
            # arrays are of the group that was leased, and not of another that got its name
            store.catalogue.leases.check(lease)
            specs_of |= {group: store.group_specs(group)[0] for group in new}
    staged = StagedFiles()
    try:
        for shard in shards:
            specs = specs_of[shard.group]
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
    except BaseException:
        staged.discard()
        raise
    return StagedBlock(lease=lease, rows=rows, files=staged, facts=facts or ImageFacts())


def commit_blocks(
    store: Store, blocks: Sequence[StagedBlock], *, release: bool = False
) -> list[LeaseLost | ConflictError | None]:
    """Commit staged blocks in one transaction; per block None, or why it was not committed.

    A block whose lease was lost holds up no other. After any error that is raised nothing was committed.
    What is not committed leaves no file. `release` gives up the leases of the blocks that are committed.
    """

    def publish(admitted: Sequence[int]) -> None:
        publish_together([blocks[number].files for number in admitted])
        for path in (path for number in admitted for path in blocks[number].removes):
            with storage_errors(path):
                path.unlink(missing_ok=True)

    def record(connection: Connection, admitted: Sequence[int]) -> None:
        committed = [blocks[number] for number in admitted]
        decoded = [fact for block in committed for fact in block.facts.decoded]
        store.catalogue.images.record_facts(connection, decoded)
        for block in committed:
            for image, reason in block.facts.bad.items():
                store.catalogue.images.mark_bad(connection, image, reason, block.lease.group)
        if release:  # not left to expire: who grows or drops the group next need not wait for it
            store.catalogue.leases.release(*(block.lease for block in committed))

    try:
        # renames inside the transaction: after leases were found to be ours and shards not to exist yet
        return store.catalogue.ledger.commit_blocks(
            [(block.lease, block.rows) for block in blocks],
            publish,
            record,
            replace_rows=any(block.replaces for block in blocks),
        )
    finally:
        for block in blocks:
            block.files.discard()
