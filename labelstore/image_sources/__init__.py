"""Images that are not an image folder: lists of files, tar shards, data sets of Hugging Face; `open_images` tells
which."""

from labelstore.image_sources.opening import are_there, file_finder, open_images

__all__ = ["are_there", "file_finder", "open_images"]
