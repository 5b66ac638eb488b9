"""The store: open, read, write. What computes lives in the modules above it."""

from labelstore.store.label_set import LabelSet
from labelstore.store.mask import Mask
from labelstore.store.opening import create, open_store
from labelstore.store.store import Store
from labelstore.store.writing import (
    BlockArrays,
    ImageFacts,
    StagedBlock,
    commit_blocks,
    stage_block,
    write_block,
)

__all__ = [
    "BlockArrays",
    "ImageFacts",
    "LabelSet",
    "Mask",
    "StagedBlock",
    "Store",
    "commit_blocks",
    "create",
    "open_store",
    "stage_block",
    "write_block",
]
