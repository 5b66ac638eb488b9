"""Stores of parts of one data set become one: what must be equal, which image comes from where, the copying."""

from labelstore.merging.merge import merge
from labelstore.merging.report import MergedLabels, MergeReport

__all__ = ["MergeReport", "MergedLabels", "merge"]
