"""One set of small pictures as a folder, a list, tar shards and a saved data set."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("bird", "cat", "dog")


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes]], *, form: int = tarfile.PAX_FORMAT
) -> Path:
    """A plain tar file of these members, as Python's own writer makes it."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return path


def write_list(path: Path, rows: Iterable[tuple[object, ...]], header: tuple[str, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def picture(seed: int, ending: str = ".jpg") -> bytes:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(40, 64, 2))
    small = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    held = io.BytesIO()
    small.resize((width, height)).save(held, "PNG" if ending == ".png" else "JPEG")
    return held.getvalue()


@pytest.fixture(scope="session")
def pictures() -> dict[str, bytes]:
    """Nine images by key, three of each class."""
    names = [f"{c}/{c}{i}{'.png' if i == 2 else '.jpg'}" for c in CLASSES for i in range(3)]
    return {name: picture(i, name[-4:]) for i, name in enumerate(names)}


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory, pictures: dict[str, bytes]) -> dict[str, str]:
    """The same images in every kind of place: name -> what `--images` gets."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("kinds")
    for key, data in pictures.items():
        (root / "folder" / key).parent.mkdir(parents=True, exist_ok=True)
        (root / "folder" / key).write_bytes(data)
    rows = [(key, key.partition("/")[0]) for key in pictures]
    write_list(root / "list.csv", rows, ("path", "class"))
    table = {"other": [0] * len(rows), "class": [c for _, c in rows], "path": [k for k, _ in rows]}
    pq.write_table(pa.table(table), root / "folder" / "list.parquet")
    items = list(pictures.items())
    for shard in range(2):
        members = []
        for key, data in items[shard::2]:
            name, truth = key.rpartition(".")[0], key.partition("/")[0]
            label = (f"{name}.json", json.dumps({"label": truth, "id": 1}).encode())
            members += [(f"./{key}", data), label if shard else (f"{name}.cls", truth.encode())]
        write_tar(root / f"shard-{shard:03d}.tar", members)
    save_dataset(root / "saved", [{"bytes": d, "path": k} for k, d in items], [c for _, c in rows])
    return {
        "folder": str(root / "folder"),
        "list": f"{root / 'list.csv'}:{root / 'folder'}",
        "parquet": str(root / "folder" / "list.parquet"),
        "tar": str(root / "shard-{000..001}.tar"),
        "datasets": str(root / "saved"),
    }


def save_dataset(
    path: Path, images: list[object], classes: list[object], *, typed: bool = True
) -> None:
    import datasets

    datasets.disable_progress_bars()
    features: dict[str, object] = {"image": datasets.Image(decode=False)}
    features["label"] = (
        datasets.ClassLabel(names=list(CLASSES)) if typed else datasets.Value("int64")
    )
    datasets.Dataset.from_dict(
        {"image": images, "label": classes}, features=datasets.Features(features)
    ).save_to_disk(path)
