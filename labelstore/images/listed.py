"""A list of files, CSV or Parquet: one row per image, columns `path` and `class`.

Paths are relative to the list's folder, or to the one that is named behind it (`list.csv:DIR`), and are the keys.
"""

from __future__ import annotations

import csv
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelstore.errors import RejectedInput, StorageError
from labelstore.images.class_names import number_classes
from labelstore.images.image_source import ImageSource, check_key, is_image_name

SUFFIXES = (".csv", ".parquet")
COLUMNS = ("path", "class")


@dataclass(frozen=True, kw_only=True)
class ImageList(ImageSource):
    """The images that a CSV or Parquet file names, in its order."""

    kind = "list"

    base: Path
    """Folder that the keys are relative to."""
    spellings: dict[str, str]
    """Key -> path as the list spells it, where that is not NFC."""

    def file(self, key: str) -> Path:
        """Where the image of that key lies."""
        return self.base / self.spellings.get(key, key)


def read_list(path: Path, base: Path | None, *, keys_only: bool = False) -> ImageList:
    """The images of a list; `base` is its own folder where none is given.

    RejectedInput, naming the row, for a list without the columns `path` and `class`, a path that is absolute, has
    '..' in it, comes twice or is no image's, and a file that is not there; `keys_only` does not look for files.
    """
    folder = path.parent if base is None else base
    if not folder.is_dir():
        raise RejectedInput(
            f"{folder} is not a folder: give the one that the paths in {path} are relative to"
        )
    csv_file = path.suffix.lower() == ".csv"
    paths, values = _read_csv(path) if csv_file else _read_parquet(path)
    if not paths:
        raise RejectedInput(f"{path} lists no image: write a row `path,class` for each")
    first = 2 if csv_file else 1  # a CSV's first line is its header

    def where(row: int) -> str:
        return f"{path}, row {row + first}"

    keys: list[str] = []
    rows: dict[str, int] = {}
    spellings: dict[str, str] = {}
    for row, spelling in enumerate(paths):
        key = _key(spelling, path, row + first)
        if rows.setdefault(key, row) != row:
            raise RejectedInput(
                f"{where(row)}: {key} is in row {rows[key] + first} already: list each image once"
            )
        if key != spelling:
            spellings[key] = spelling
        keys.append(key)
    classes, class_ids = number_classes(values, where)
    facts = np.full((len(keys), 2), -1, np.int64)
    if not keys_only:
        for row, spelling in enumerate(paths):
            facts[row] = _size_and_time(folder / spelling, where(row))
    return ImageList(
        root=path if base is None else Path(f"{path}:{base}"),
        classes=classes,
        keys=tuple(keys),
        class_ids=class_ids,
        sizes=facts[:, 0].copy(),
        mtimes_ns=facts[:, 1].copy(),
        base=folder,
        spellings=spellings,
    )


def _key(spelling: str, path: Path, row: int) -> str:
    try:
        key = check_key(spelling)
    except RejectedInput as error:
        raise RejectedInput(f"{path}, row {row}: {error}") from None
    if not is_image_name(key):
        raise RejectedInput(
            f"{path}, row {row}: {key!r} is not an image's name (.jpg, .png, ...): remove the row"
        )
    return key


def _read_csv(path: Path) -> tuple[list[str], list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.reader(lines, strict=True)
            header = [name.strip() for name in next(rows, [])]
            at = [_column(path, header, name) for name in COLUMNS]
            paths: list[str] = []
            values: list[str] = []
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise RejectedInput(
                        f"{path}, line {rows.line_num} has {len(row)} values, the header {len(header)}: quote commas"
                    )
                paths.append(row[at[0]])
                values.append(row[at[1]].strip())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RejectedInput(f"{path} is not a CSV file in UTF-8 ({reason})") from None
    return paths, values


def _read_parquet(path: Path) -> tuple[list[str], list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        for name in COLUMNS:
            _column(path, names, name)
        table = pq.read_table(path, columns=list(COLUMNS))
    except OSError as error:
        if error.errno is None:  # Arrow's own errors are of that kind too
            raise RejectedInput(
                f"{path} is not a Parquet file, or a damaged one: {_line(error)}"
            ) from None
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except pa.ArrowException as error:
        raise RejectedInput(
            f"{path} is not a Parquet file, or a damaged one: {_line(error)}"
        ) from None
    columns: list[list[Any]] = []
    for name, kinds in (("path", (str,)), ("class", (str, int))):
        values = table.column(name).to_pylist()
        wrong = next((i for i, v in enumerate(values) if type(v) not in kinds), None)
        if wrong is not None:
            what = " or whole numbers" if int in kinds else ""
            raise RejectedInput(
                f"{path}, row {wrong + 1}: column {name} has {str(values[wrong])[:40]!r}, needed is text{what}"
            )
        columns.append(values)
    return columns[0], columns[1]


def _column(path: Path, names: Sequence[str], name: str) -> int:
    if list(names).count(name) != 1:
        found = ", ".join(str(known)[:40] for known in names[:8]) or "nothing"
        raise RejectedInput(
            f"{path} needs one column `{name}`, it has {found}: a list has a header with `path` and `class`"
        )
    return list(names).index(name)


def _size_and_time(file: Path, where: str) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        raise RejectedInput(
            f"{where}: {file} is not there: paths are relative to the list, or give LIST:DIR"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise RejectedInput(f"{where}: {file} is not a file: remove the row")
    return status.st_size, status.st_mtime_ns


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
