"""FKD's files: one `torch.save` of [coordinates, flip, labels] per image, in folders by class."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.layouts.base import Crops, Layout, Parts, Reader


@dataclass(frozen=True)
class Fkd(Layout):
    """As FKD's generator writes them, float32. `safe` reads the pickle inside without torch, with five names allowed."""

    safe: bool = False
    files_grow: bool = True
    note: str = "float32; fractions of the image side"
    packages: tuple[str, ...] = ("torch",)

    @property
    def name(self) -> str:  # type: ignore[override]
        return "FKD's files, own reader" if self.safe else "FKD's files, torch.load"

    def write(self, folder: Path, parts: Parts, num_images: int) -> None:
        import torch

        for rows, labels in parts:
            for at, row in enumerate(rows):
                path = _path(folder, row)
                path.parent.mkdir(parents=True, exist_ok=True)
                height, width = labels.size[at].astype(np.float32)
                coordinates = labels.box[at] / np.array([height, width, height, width], np.float32)
                both = np.stack([labels.class_ids[at].astype(np.float32), labels.probs[at]], axis=1)
                torch.save([coordinates.astype(np.float32), labels.flip[at], both], path)

    def reader(self, folder: Path) -> Reader:
        return _FkdReader(folder, _load_safely if self.safe else _load)


@dataclass
class _FkdReader(Reader):
    folder: Path
    load: Callable[[Path], list[NDArray[Any]]]

    def image(self, row: int) -> Crops:
        coordinates, flip, labels = self.load(_path(self.folder, row))
        return labels[:, 0], labels[:, 1], coordinates, flip


def _path(folder: Path, row: int) -> Path:
    name = f"n{row // 1300:08d}"
    return folder / "imagenet" / "train" / name / f"{name}_{row}.tar"


def _load(path: Path) -> list[NDArray[Any]]:
    import torch

    with torch.serialization.safe_globals(_torch_names()):
        found: list[NDArray[Any]] = torch.load(path, weights_only=True)
    return found


def _load_safely(path: Path) -> list[NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:
        (entry,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        data = archive.read(entry)
    found: list[NDArray[Any]] = _ArraysOnly(io.BytesIO(data)).load()
    return found


class _ArraysOnly(pickle.Unpickler):
    ALLOWED = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a label file")
        return super().find_class(module, name)


def _torch_names() -> list[Any]:
    import _codecs

    reconstruct = np._core.multiarray._reconstruct
    dtypes = [type(np.dtype(code)) for code in ("f4", "f2", "?", "i8")]
    return [reconstruct, np.ndarray, np.dtype, _codecs.encode, *dtypes]
