"""Reading one image by its key, with errors that name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from labelstore.cropping.replay import decode
from labelstore.errors import LabelStoreError, RejectedInput, StorageError
from labelstore.images import ImageFile, ImageSource, file_finder


def load_image(
    path: ImageFile,
    key: str,
    size: NDArray[np.int64],
    decode: Callable[[bytes, str], Tensor] = decode,
) -> Tensor:
    """Pixels (3, H, W) of one image, as `decode` makes them; RejectedInput if its crops were cut for another size."""
    image = decode(path.read_bytes(), key)
    height, width = size.tolist()
    if min(height, width) > 0 and image.shape[1:] != (height, width):
        raise RejectedInput(
            f"{key} has {image.shape[2]} x {image.shape[1]} pixels, its crops were made for {width} x {height}: "
            "give `data` the images that the store was made from"
        )
    return image


@contextmanager
def named_errors(key: str) -> Iterator[None]:
    """Errors inside come out in one line that names the image, as errors that are raised on purpose."""
    try:
        yield
    except LabelStoreError as error:
        if key in str(error):
            raise
        raise type(error)(f"{key}: {error}") from error
    except FileNotFoundError as error:
        raise RejectedInput(
            f"{key}: no such image; give `data` the images that the store was made from"
        ) from error
    except OSError as error:
        raise StorageError(f"{key}: {error.strerror or error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise LabelStoreError(f"{key}: {type(error).__name__}: {reason}") from error


def path_by_key(data: Path | ImageSource, key: str) -> Callable[[str], ImageFile]:
    """Where an image lies, by its key: in `data` or in train/ inside it, wherever the image `key` is.

    RejectedInput where it is in neither, and as `open_images` raises it.
    """
    if isinstance(data, ImageSource):
        return data.file
    root = Path(data)
    for folder in (root, root / "train"):
        if (folder / key).exists():
            # a bound method can be pickled for a worker process
            return folder.joinpath
    finder = file_finder(root / "train" if (root / "train").is_dir() else root)
    try:
        finder(key).read_bytes()
    except OSError:
        raise RejectedInput(
            f"{data} has no image {key}, nor has train/ in it: give `data` the images that the store was made from"
        ) from None
    return finder
