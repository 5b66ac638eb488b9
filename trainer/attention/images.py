"""The images that are looked at: files, or keys in what the runs learnt from and were evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from labelstore.errors import LabelStoreError, RejectedInput
from labelstore.images import ImageFile, check_key, file_finder
from trainer.config import TrainConfig, evaluation_split


def image_folders(configs: Sequence[TrainConfig]) -> list[Path]:
    """Where runs have images, those for validation first."""
    found: list[Path | None] = []
    for own, name in (("val", "val"), ("train", "train")):
        for config in configs:
            data = config.data and (
                evaluation_split(config.data) if own == "val" else config.data / name
            )
            found.append(getattr(config, own) or data)
    return list(dict.fromkeys(folder for folder in found if folder is not None))


def find_image(text: str, folders: Sequence[Path]) -> ImageFile:
    """The file of that path, or the image of that key in the first of `folders` that has it.

    A folder may be anything that `labelstore create --images` takes. RejectedInput where there is none, or for a key
    that leads out of a folder.
    """
    try:
        if Path(text).is_file():
            return Path(text)
        key = check_key(text)
        for folder in folders:
            found = _in_folder(key, folder)
            if found is not None:
                return found
    except (OSError, ValueError) as error:
        if isinstance(error, LabelStoreError):
            raise
        # longer than names may be, or a NUL in it
        raise RejectedInput(f"no image {text[:80]!r}: {error}") from error
    where = f" in {', '.join(map(str, folders[:4]))}" if folders else ""
    raise RejectedInput(
        f"no image {text}{where}: give a file, or CLASS/NAME with `images` where it lies"
    )


def _in_folder(key: str, folder: Path) -> ImageFile | None:
    try:
        found = file_finder(folder)(key)
    except (RejectedInput, FileNotFoundError):
        # a folder that is not there any more, or does not have it: another one may
        return None
    return None if isinstance(found, Path) and not found.is_file() else found
