"""Where pictures come from: folders, lists of files, tar shards, data sets of Hugging Face. No pixels are made here."""

from labelstore.images.image_source import (
    EXTENSIONS,
    ImageFile,
    ImageFolder,
    ImageSource,
    check_key,
    check_keys,
    digest,
    image_size,
    jpeg_frame,
    scan_folder,
    sniff,
)
from labelstore.images.kinds import are_there, file_finder, open_images

__all__ = [
    "EXTENSIONS",
    "ImageFile",
    "ImageFolder",
    "ImageSource",
    "are_there",
    "check_key",
    "check_keys",
    "digest",
    "file_finder",
    "image_size",
    "jpeg_frame",
    "open_images",
    "scan_folder",
    "sniff",
]
