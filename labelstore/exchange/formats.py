"""Every format that can be imported, by the name that the command line gives it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from labelstore.errors import UsageError
from labelstore.exchange.labels import LabelSource, OpenSource
from labelstore.exchange.stated import Stated
from labelstore.images import ImageSource

FORMATS = {
    "fkd": ("fkd", "open_fkd"),
    "relabel": ("label_maps", "open_relabel"),
    "tokenlabeling": ("label_maps", "open_tokenlabeling"),
    "sre2l": ("batch_files", "open_sre2l"),
    "lpld": ("batch_files", "open_lpld"),
    "lpqld": ("batch_files", "open_lpqld"),
    "edc": ("batch_files", "open_edc"),
    "gvbsm": ("batch_files", "open_gvbsm"),
    "hald": ("batch_files", "open_hald"),
    "ml-dr": ("ml_dr", "open_ml_dr"),
    "datacompdr": ("datacompdr", "open_datacompdr"),
    "tinyvit": ("tinyvit", "open_tinyvit"),
    "torchdistill": ("torchdistill", "open_torchdistill"),
    "npz": ("tables", "open_npz"),
    "parquet": ("tables", "open_parquet"),
}
"""Name -> module of `exchange.readers` and its function."""
ORDERED = ("sre2l", "ml-dr", "tinyvit", "torchdistill")
"""Formats that name an image by its position in a data set, and do not say which one."""


def open_source(format_name: str, source: Path, images: ImageSource, stated: Stated) -> LabelSource:
    """The labels that `source` holds for the images of a folder; UsageError for an unknown format."""
    if format_name not in FORMATS:
        raise UsageError(f"no format {format_name!r}: choose one of {', '.join(FORMATS)}")
    if stated.order is not None and format_name not in ORDERED:
        raise UsageError(
            f"order {stated.order[:100]}: {format_name} files say which image is which; leave it out"
        )
    module, function = FORMATS[format_name]
    opener: OpenSource = getattr(import_module(f"labelstore.exchange.readers.{module}"), function)
    return opener(source, images, stated)
