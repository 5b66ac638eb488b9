"""Reading one image by its key, with errors that name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from labelstore.errors import LabelStoreError, RejectedInput, StorageError
from labelstore.images import ImageFolder
from labelstore.replay import decode


def load_image(path: Path, key: str, size: NDArray[np.int64]) -> Tensor:
    """Pixels (3, H, W) of an image file; RejectedInput if it is not of the size that its crops were cut for."""
    image = decode(path.read_bytes(), key)
    height, width = image.shape[1:]
    if min(size) > 0 and (height, width) != tuple(size):
        raise RejectedInput(
            f"{key} has {width} x {height} pixels, its crops were made for {size[1]} x {size[0]}: "
            "give --data the images that the store was made from"
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
            f"{key}: no such image; give --data the images that the store was made from"
        ) from error
    except OSError as error:
        raise StorageError(f"{key}: {error.strerror or error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise LabelStoreError(f"{key}: {type(error).__name__}: {reason}") from error


def path_by_key(data: Path | ImageFolder, key: str) -> Callable[[str], Path]:
    """Where an image lies, by its key: in `data` or in train/ inside it, wherever the image `key` is.

    RejectedInput where it is in neither.
    """
    if isinstance(data, ImageFolder):
        return data.path
    for root in (Path(data), Path(data) / "train"):
        if (root / key).exists():
            # a bound method can be pickled for a worker process
            return root.joinpath
    raise RejectedInput(
        f"{data} has no image {key}, nor has train/ in it: give --data the images that the store was made from"
    )
