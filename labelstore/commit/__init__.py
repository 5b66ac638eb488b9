"""Committing: one worker that leases image blocks, has them made, and commits what was made.

Every job that writes labels, crops or masks is a `BlockSource` or a `BlockStream` (labelling, repair, import, merge,
masks, variants): it says which blocks it wants and makes their arrays. Leases, waiting for other processes, staging,
transactions and progress are the worker's. `LabelledBlock` puts a block of labels together image by image.
"""

from labelstore.commit.block_jobs import BlockSource, BlockStream, LeasedBlock, MadeBlock
from labelstore.commit.labelled_block import LabelledBlock, Labels, arrays_of
from labelstore.commit.worker import part_of, work_through

__all__ = [
    "BlockSource",
    "BlockStream",
    "LabelledBlock",
    "Labels",
    "LeasedBlock",
    "MadeBlock",
    "arrays_of",
    "part_of",
    "work_through",
]
