"""R25: a stranger's catalogue with one cell that holds another value, its digests made to match: read, or refused."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from labelstore.catalogue.schema import DIGESTED
from tests.stress.commands import CASES, World, copy_world, make_given, run
from tests.stress.crafted import reseal

ODD = (
    None, True, False, 0, -1, 1, 2, 1 << 31, 1 << 63, -(1 << 63) - 1, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "1", "\x1b[31m", "\u0000", "\ud800", "/", "../x", "é" * 300, [], {}, [[]], [1, "x"], [None],
    {"": None}, {"name": "ms"}, [0] * 1000, "9" * 400,
)  # fmt: skip
"""Odd values of JSON; what a column of numbers or text cannot hold is left out there."""
NO_JSON = ("", "{", "[" * 5000, "nul", '{"a":1,"a":2}', "\ufeff{}")
"""Texts in the place of a whole JSON column."""
# the full size, in parts that can be stopped between and run side by side
PARTS, FULL_CELLS = 20, 500


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    return make_given(tmp_path_factory.mktemp("given"))


def paths_in(value: Any) -> Iterator[tuple[Any, ...]]:
    """Where each value inside a JSON value lies, the whole first."""
    yield ()
    parts = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in parts:
        for path in paths_in(part):
            yield (key, *path)


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


def cells(catalogue: Path) -> Iterator[tuple[str, str, dict[str, Any], object]]:
    """(table, column, primary key, new value) of every change."""
    with closing(sqlite3.connect(catalogue)) as connection:
        connection.row_factory = sqlite3.Row
        for table in DIGESTED:
            row = connection.execute(f"SELECT * FROM {table.name}").fetchone()
            if row is None:
                continue
            key = {column.name: row[column.name] for column in table.primary_key.columns}
            for column in table.columns:
                held = row[column.name]
                if "json" in column.info:
                    value = json.loads(held)
                    for path in paths_in(value):
                        for new in ODD:
                            yield (
                                table.name,
                                column.name,
                                key,
                                json.dumps(replaced(value, path, new)),
                            )
                    for text in NO_JSON:
                        yield table.name, column.name, key, text
                    continue
                for new in ODD:
                    is_text = isinstance(new, str) and "\ud800" not in new
                    is_number = isinstance(new, (int, float)) and not abs(new) >= 1 << 63
                    if new is None or is_text or is_number:
                        yield table.name, column.name, key, new


def change(catalogue: Path, table: str, column: str, key: dict[str, Any], new: object) -> bool:
    """Write the value, as a bare file of SQLite takes it; False where the table refuses it."""
    where = " AND ".join(f"{name} IS ?" for name in key)
    with closing(sqlite3.connect(catalogue)) as connection:
        try:
            connection.execute(
                f"UPDATE {table} SET {column} = ? WHERE {where}", (new, *key.values())
            )
        except (sqlite3.IntegrityError, OverflowError):
            return False
        connection.commit()
    reseal(catalogue.parent)
    return True


def commands(world: World, *, all_of_them: bool) -> list[tuple[str, list[object]]]:
    few = [("labelstore", [name, world.store]) for name in ("info", "stats", "verify")]
    if not all_of_them:
        return few
    create = CASES["labelstore", "create"](world, "store")
    return [*few, ("labelstore", create), ("trainer", CASES["trainer", "run"](world))]


@pytest.mark.parametrize("part", range(PARTS))
def test_odd_cells_end_in_no_traceback(part, given, tmp_path, scale, matrix, capfd):
    """R25: every command reads it, or says in one line what is wrong with it."""
    if part > 0 and scale < 2:
        pytest.skip("a part of `make stress`")
    world = copy_world(given, tmp_path)
    catalogue = world.store / "catalogue.db"
    keep = tmp_path / "keep"
    shutil.copytree(world.store, keep)
    every = list(cells(catalogue))
    random.Random(25).shuffle(every)
    wanted, tried, wrong = FULL_CELLS // PARTS if scale >= 2 else round(24 * scale), 0, []
    for table, column, key, new in every[part::PARTS]:
        if tried == wanted:
            break
        if not change(catalogue, table, column, key, new):
            continue
        tried += 1
        for program, arguments in commands(world, all_of_them=tried % 5 == 0):
            code = run(program, arguments)
            said = capfd.readouterr().err
            if code == 1 or "Traceback" in said or "\x1b" in said:
                wrong.append(
                    f"{table}.{column} = {new!r:.200}: {arguments[0]} ended with {code}: {said[-300:]}"
                )
        if tried % 5 == 0:
            shutil.rmtree(world.folder / "run", ignore_errors=True)
        shutil.rmtree(world.store)
        shutil.copytree(keep, world.store)
    matrix.record("R25", cells=tried, tracebacks=len(wrong))
    assert not wrong, "\n".join(wrong)
