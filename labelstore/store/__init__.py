"""The store: open it, find and read what it holds. Writing is in `commit`; what computes is in the rooms above."""

from labelstore.store.label_set import LabelSet
from labelstore.store.opening import create, open_store
from labelstore.store.plan_options import PlanOptions
from labelstore.store.region_mask import Mask
from labelstore.store.store import Store

__all__ = [
    "LabelSet",
    "Mask",
    "PlanOptions",
    "Store",
    "create",
    "open_store",
]
