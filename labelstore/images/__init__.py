"""Where pictures come from: folders, lists of files, tar shards, data sets of Hugging Face. No pixels are made here."""

from labelstore.images.image_source import (
    EXTENSIONS,
    HIDDEN,
    NO_IMAGE_NAME,
    OUTSIDE,
    ImageFile,
    ImageFolder,
    ImageSource,
    JpegFrame,
    check_key,
    check_keys,
    digest,
    ignored_words,
    image_size,
    is_hidden,
    jpeg_frame,
    open_picture,
    scan_folder,
    sniff,
    torchvision_classes,
)
from labelstore.images.image_source import (
    MAX_KEY_BYTES as MAX_KEY_BYTES,
)
from labelstore.images.kinds import are_there, file_finder, open_images

__all__ = [
    "EXTENSIONS",
    "HIDDEN",
    "NO_IMAGE_NAME",
    "OUTSIDE",
    "ImageFile",
    "ImageFolder",
    "ImageSource",
    "JpegFrame",
    "are_there",
    "check_key",
    "check_keys",
    "digest",
    "file_finder",
    "ignored_words",
    "image_size",
    "is_hidden",
    "jpeg_frame",
    "open_images",
    "open_picture",
    "scan_folder",
    "sniff",
    "torchvision_classes",
]
