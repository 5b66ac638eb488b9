"""The image blocks that one worker holds: leased, opened with what was spooled, handed over, committed.

Commits happen in a thread of their own. Whatever stops the worker, what it has finished is in the ledger or in the
spool, and a block whose lease was lost is left to whoever took it.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from labelstore.catalogue.records import LabelSetRow, Lease, PlanRow
from labelstore.codecs.base import LabelCodec, TopK
from labelstore.commit.lease_keeper import LeaseKeeper
from labelstore.commit.settling import settled_codec
from labelstore.commit.spool import Spool, read_spools, remove_spools
from labelstore.commit.staging import BlockArrays, ImageFacts, write_block
from labelstore.errors import ConflictError, LeaseLost, UsageError
from labelstore.labelling.image_block import ImageBlock
from labelstore.labelling.whole_images import crop_shards_of
from labelstore.store import Store
from labelstore.store.layout import Layout

COMMITS_BEHIND = 2
"""Labelled blocks that may wait for the disk: each is held in memory."""


@dataclass(kw_only=True)
class LeasedBlocks:
    """Blocks of a label set on their way from a lease to a commit; a context manager, which gives up what is left."""

    store: Store
    plan: PlanRow
    label_set: str
    uuid: str
    """Of the label set that the leases are of: one that gets its name later is another."""
    layout: Layout
    is_map: bool
    """Whether labels are of whole images, so that the plan's crops are none of the worker's."""
    num_classes: int
    device: str
    """What the ledger says that labels were made on."""

    def __post_init__(self) -> None:
        self._spools = self.store.path / "spool" / self.label_set
        self._held: dict[int, ImageBlock] = {}
        self._commits: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._keeper = LeaseKeeper(
            self.store.catalogue,
            f"labels/{self.label_set}",
            self.layout.num_blocks,
            self.layout.num_crop_shards,
            identity=self.uuid,
        )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.shutdown(wait=True)
        for block in self._held.values():
            block.spool.close()
        self._keeper.close()

    def lease(self) -> Lease | None:
        """The next block that nobody has; None where there is none."""
        return self._keeper.acquire()

    def open(self, lease: Lease, committed: Collection[int]) -> ImageBlock:
        """The leased block without its `committed` crop shards, and with what earlier leases left in the spool."""
        rows = self.layout.rows(lease.block)
        bad = self.store.bad
        block = ImageBlock(
            lease=lease,
            rows=rows,
            num_crops=self.layout.num_crops,
            missing=[i for i in range(self.layout.num_crop_shards) if i not in committed],
            crops_per_shard=self.layout.crops_per_shard,
            spool=Spool(self._spools, lease, self.uuid),
            pending={i for i in rows if not bad[i]},
        )
        block.take(read_spools(self._spools, lease.block, self.uuid))
        return block

    def hold(self, block: ImageBlock) -> None:
        """From now on labels of its images are for this block."""
        self._held[block.lease.block] = block

    def block_of(self, image: int) -> ImageBlock | None:
        """The held block with this image row; None where its lease was lost, or it was handed over."""
        return self._held.get(image // self.layout.images_per_shard)

    def drop_lost(self) -> None:
        """Let go of blocks that another worker took."""
        for number, block in list(self._held.items()):
            try:
                self._keeper.current(block.lease)
            except LeaseLost:
                # what is in the spool serves whoever took the block
                block.spool.close()
                del self._held[number]

    def hand_over(self, block: ImageBlock) -> None:
        """Commit a complete block, in the thread for that."""
        del self._held[block.lease.block]
        self._commits.append(self._writer.submit(self._commit, block))

    def keep_up(self) -> None:
        """Wait for commits while more than `COMMITS_BEHIND` are behind; raises what one of them raised."""
        while self._commits and (len(self._commits) > COMMITS_BEHIND or self._commits[0].done()):
            self._commits.pop(0).result()

    def finish(self) -> None:
        """Wait for every commit; raises what one of them raised."""
        for commit in self._commits:
            commit.result()
        self._commits.clear()

    def own_row(self) -> LabelSetRow:
        """The label set's row; ConflictError where it was dropped since this worker began, or made anew."""
        row = self.store.find_label_set(self.label_set)
        if row is not None and row.uuid == self.uuid:
            return row
        raise ConflictError(
            f"label set {self.label_set} of {self.store.path} was dropped or made anew while this process was at "
            "work on it: what it made since is not committed; run the command again if it is still wanted"
        )

    def _commit(self, block: ImageBlock) -> None:
        block.spool.close()
        try:
            lease = self._keeper.current(block.lease)
            codec = self._settled_codec(block)
            shards = block.label_arrays(self.label_set, codec, self.num_classes)
            if self.plan.stored:
                shards += self._missing_crops(block)
            facts = block.facts()
            known = self.store.bad
            write_block(
                self.store,
                lease,
                shards,
                facts=ImageFacts(
                    decoded=facts.decoded,
                    bad={image: why for image, why in facts.bad.items() if not known[image]},
                ),
                num_images=len(block.done),
                seconds=block.seconds,
                device=self.device,
            )
        except LeaseLost:
            # another worker has the block and will commit it; the spool stays for it
            self._keeper.forget(block.lease.block)
            return
        self._keeper.forget(block.lease.block)
        remove_spools(self._spools, block.lease.block)

    def _missing_crops(self, block: ImageBlock) -> list[BlockArrays]:
        """Shards of the plan's crops of this block that no label set has committed yet."""
        there = self.store.catalogue.ledger.committed(f"crops/{self.plan.name}")
        have = there.get(block.lease.block, ())
        if len(have) * self.plan.crops_per_shard >= self.plan.num_crops:
            return []
        if self.is_map:
            sizes = {image: (one.height, one.width) for image, one in block.done.items()}
            made = crop_shards_of(self.store, self.plan, block.rows, sizes)
        else:
            made = block.crop_arrays(self.plan)
        return [shard for shard in made if shard.crop_shard not in have]

    def _settled_codec(self, block: ImageBlock) -> LabelCodec:
        """The label set's codec; its form of class ids is chosen on the first shard that anyone commits."""

        def first() -> TopK | None:
            labels = block.labels(block.crop_shards()[0][1])
            assert isinstance(labels, TopK)
            return labels if block.done else None

        try:
            return settled_codec(self.store, self.own_row(), first, uuid=self.uuid)
        except (ConflictError, UsageError):
            self.own_row()  # says so where it is another one, or none
            raise
