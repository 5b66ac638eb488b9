"""What a job says so that its image blocks are committed: which blocks it wants, and how they are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from labelstore.blocks.block_map import MapBlocks, map_in_threads
from labelstore.catalogue.records import Lease
from labelstore.commit.staging import BlockArrays, ImageFacts, StagedBlock, stage_block
from labelstore.store import Store
from labelstore.store.layout import Layout


@dataclass(frozen=True, kw_only=True)
class LeasedBlock:
    """An image block that only this process may write, until its lease is lost."""

    lease: Lease
    block: int
    """Number of the block."""
    rows: range
    """Image rows."""
    missing: Sequence[int]
    """Crop shards to make, ascending."""
    current: Callable[[], Lease]
    """The lease with its newest expiry; raises LeaseLost where another process took the block."""


@dataclass(frozen=True, kw_only=True)
class MadeBlock:
    """What became of a leased block."""

    leased: LeasedBlock
    shards: Callable[[], Iterable[BlockArrays]] | None
    """Called once, when the block is staged. None where the block cannot be made: it stays open, and this job does not
    ask for it again."""
    num_images: int = 0
    """Images that have labels."""
    facts: ImageFacts = field(default_factory=ImageFacts)
    seconds: float = 0.0
    device: str = ""
    result: Any = None
    """Returned to the caller of the job once the block is committed, or cannot be made."""


@dataclass(kw_only=True)
class _Blocks(ABC):
    """The image blocks of one group that a job wants to be committed."""

    store: Store
    group: str
    """Whose blocks are leased: "labels/NAME", "masks/NAME" or "crops/PLAN"."""
    identity: str | None = None
    """`Groups.identity` of the group that was looked at: another one of that name gets nothing. None: as it is now."""
    layout: Layout
    blocks: Sequence[int]
    """In the order in which they are leased."""
    under_way: int = field(default=0, init=False)
    """Progress in blocks that are not committed yet, in the unit of `size`."""

    @property
    def most_shards(self) -> int:
        """A block with as many committed crop shards is not leased."""
        return self.layout.num_crop_shards

    def missing(self, block: int, committed: Collection[int]) -> Sequence[int]:
        """Crop shards of a block that are to be made, where these are committed; none when it is done."""
        return [s for s in range(self.layout.num_crop_shards) if s not in committed]

    def size(self, block: int) -> int:
        """Return the crops of a block, its share of the progress."""
        return len(self.layout.rows(block)) * self.layout.num_crops

    def stage(self, made: MadeBlock) -> StagedBlock:
        """Write the files of a made block under temporary names. LeaseLost where another process took the block."""
        assert made.shards is not None
        return stage_block(
            self.store,
            made.leased.current(),
            [*made.shards()],
            facts=made.facts,
            num_images=made.num_images,
            seconds=made.seconds,
            device=made.device,
            known=self.__dict__.setdefault("_known_specs", {}),
        )

    def committed(self, made: MadeBlock) -> None:  # noqa: B027 - most jobs have nothing to do then
        """Called in the job's own thread after each block that was committed."""


@dataclass(kw_only=True)
class BlockSource(_Blocks):
    """A job that makes each block from nothing but itself. It goes to other processes, so it must be picklable."""

    map_blocks: MapBlocks = map_in_threads
    """How several blocks are made at once, here or in other processes."""

    @abstractmethod
    def arrays(self, leased: LeasedBlock) -> MadeBlock:
        """Make one block; several threads may call it."""


@dataclass(kw_only=True)
class BlockStream(_Blocks):
    """A job that makes blocks side by side, as batches of a teacher do."""

    @abstractmethod
    def make(self, leased: Iterator[LeasedBlock]) -> Iterator[MadeBlock | None]:
        """Made blocks in any order; every `next(leased)` leases one more.

        None now and then while a block takes long, so that commits and progress are looked after. A block that is
        not returned is given up. Shards are encoded in the thread that commits.
        """
