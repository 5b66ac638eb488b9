from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import fields

import numpy as np
import pytest
from sqlalchemy import MetaData, Table, create_engine, select

from labelstore.catalogue import Catalogue, ImageRow
from labelstore.catalogue.digests import write_digests
from labelstore.catalogue.image_blocks import BLOCK_ROWS
from labelstore.catalogue.migrations import SCRIPTS, upgrade
from labelstore.errors import ConflictError, DamagedShard, UsageError

KEYS = ["a/1.jpg", "a/ä.jpg", "b/3.jpg"]


@pytest.fixture
def registered(catalogue):
    catalogue.images.add(KEYS, np.array([0, 0, 1]), [10, 20, 30], [1, 2, 3])
    return catalogue


def test_images_come_back_in_row_order(registered):
    rows = registered.images.rows()
    assert [row.image for row in rows] == [0, 1, 2]
    assert [row.key for row in rows] == KEYS
    assert [(row.class_id, row.size, row.mtime_ns) for row in rows] == [
        (0, 10, 1),
        (0, 20, 2),
        (1, 30, 3),
    ]
    assert registered.images.rows([2, 0]) == [rows[2], rows[0]]
    assert registered.images.num_images() == 3
    with pytest.raises(UsageError, match="rows 0 to 2"):
        registered.images.rows([3])


def test_columns_say_the_same_as_rows(registered):
    with registered.transaction() as conn:
        registered.images.record_facts(
            conn, [(1, 640, 480, b"\x00" * 16), (2, 3, 4, b"\x00\xff" * 8)]
        )
        registered.images.mark_bad(conn, 0, "truncated")
    columns = registered.images.columns()
    for row in registered.images.rows():
        at = row.image
        assert columns["key"][at] == row.key
        assert columns["bad"][at] == row.bad
        assert columns["has_digest"][at] == (row.digest is not None)
        assert bytes(columns["digest"][at]) == (row.digest or bytes(16))
        for name in ("class_id", "width", "height", "size", "mtime_ns"):
            value = getattr(row, name)
            assert columns[name][at] == (-1 if value is None else value)
    registered.verify_digests()


def test_no_images_are_columns_of_length_zero(catalogue):
    assert {name: len(column) for name, column in catalogue.images.columns().items()}.keys() >= {
        "key"
    }
    assert all(len(column) == 0 for column in catalogue.images.columns().values())


def test_images_are_found_by_key(registered):
    assert registered.images.find([*KEYS, "b/4.jpg"]) == {key: row for row, key in enumerate(KEYS)}


def test_registering_again_changes_nothing_and_completes(registered):
    assert registered.images.add(KEYS, [0, 0, 1], [10, 20, 30], [1, 2, 3], first_row=0) == range(3)
    more = [*KEYS, "c/4.jpg"]
    rows = registered.images.add(more, [0, 0, 1, 2], [10, 20, 30, 40], [1, 2, 3, 4], first_row=0)
    assert rows == range(4)
    assert [row.key for row in registered.images.rows()] == more
    assert registered.images.add(["d"], [0], [0], [0]) == range(4, 5)
    registered.verify_digests()


@pytest.mark.parametrize(
    ("keys", "classes", "sizes", "first_row"),
    [
        (["a/1.jpg", "x", "b/3.jpg"], [0, 0, 1], [10, 20, 30], 0),
        (KEYS, [0, 1, 1], [10, 20, 30], 0),
        (KEYS, [0, 0, 1], [10, 21, 30], 0),
        (KEYS[:2], [0, 0], [10, 20], 0),
        (KEYS, [0, 0, 1], [10, 20, 30], None),
        (["new", "b/3.jpg"], [0, 0], [1, 1], None),
    ],
)
def test_other_images_are_a_conflict(registered, keys, classes, sizes, first_row):
    before = registered.images.rows()
    with pytest.raises(ConflictError):
        registered.images.add(keys, classes, sizes, [1, 2, 3][: len(keys)], first_row=first_row)
    assert registered.images.rows() == before


def test_keys_are_unique_and_rows_leave_no_gap(registered):
    with pytest.raises(ConflictError, match="twice"):
        registered.images.add(["x", "x"], [0, 0], [1, 1], [1, 1])
    with pytest.raises(UsageError, match="no gaps"):
        registered.images.add(["x"], [0], [1], [1], first_row=4)
    with pytest.raises(UsageError, match="one each"):
        registered.images.add(["x"], [0, 1], [1], [1])


def test_facts_are_written_once_and_an_image_that_changed_is_refused(registered):
    with registered.transaction() as conn:
        registered.images.record_facts(conn, [(0, 640, 480, b"a" * 16)])
    with registered.transaction() as conn:
        registered.images.record_facts(conn, [(0, 640, 480, b"a" * 16), (1, 2, 2, b"b" * 16)])
    with registered.transaction() as conn, pytest.raises(ConflictError, match=r"a/1\.jpg"):
        registered.images.record_facts(conn, [(0, 640, 480, b"c" * 16)])
    with registered.transaction() as conn, pytest.raises(UsageError, match="not in the catalogue"):
        registered.images.record_facts(conn, [(9, 640, 480, b"c" * 16)])
    with registered.transaction() as conn, pytest.raises(UsageError, match="16 bytes"):
        registered.images.record_facts(conn, [(2, 640, 480, b"c")])
    assert [row.width for row in registered.images.rows()] == [640, 2, None]


def test_numpy_strings_are_keys_like_any_other(catalogue):
    catalogue.images.add(
        np.array(KEYS), np.zeros(3), np.array([1, 2, 3], dtype=np.int32), [0, 0, 0]
    )
    assert [row.key for row in catalogue.images.rows()] == KEYS


def test_classes_are_named_once(catalogue):
    assert catalogue.classes() == ()
    catalogue.add_classes(["cat", "dog"])
    catalogue.add_classes(["cat", "dog"])
    assert catalogue.classes() == ("cat", "dog")
    for names in (["cat"], ["cat", "dog", "eel"], ["dog", "cat"]):
        with pytest.raises(ConflictError, match="first difference"):
            catalogue.add_classes(names)
    with pytest.raises(UsageError, match="twice"):
        catalogue.add_classes(["cat", "cat"])


def test_blocks_are_filled_up_and_say_the_same_as_one_row_each(catalogue):
    """Registered in parts, decoded in any order: rows, columns and search agree, across blocks and free rows."""
    keys = [f"c/{at}.jpg" for at in range(2 * BLOCK_ROWS + 300)]
    first, second = keys[: BLOCK_ROWS - 3], keys[BLOCK_ROWS - 3 : BLOCK_ROWS + 500]
    for part in (first, second):
        catalogue.images.add(part, range(len(part)), range(len(part)), range(len(part)))
    third = keys[BLOCK_ROWS + 500 :]
    rows = catalogue.images.append(third, *[range(len(third))] * 3, multiple=4 * BLOCK_ROWS + 7)
    assert rows.start == 4 * BLOCK_ROWS + 7
    numbers = [*range(len(first) + len(second)), *rows]
    decoded = [numbers[at] for at in (0, BLOCK_ROWS - 1, BLOCK_ROWS, len(keys) - 1)]
    with catalogue.transaction() as conn:
        facts = [(row, row + 1, 9, row.to_bytes(16, "big")) for row in reversed(decoded)]
        catalogue.images.record_facts(conn, facts)
        catalogue.images.mark_bad(conn, rows[5], "line\nbreak, ü")
        for row in (rows.start - 1, rows.stop, 3 * BLOCK_ROWS, 10**9):
            with pytest.raises(UsageError, match="not in the catalogue"):
                catalogue.images.record_facts(conn, [(row, 1, 1, bytes(16))])
            with pytest.raises(UsageError, match="not in the catalogue"):
                catalogue.images.mark_bad(conn, row, "x")
    assert catalogue.images.counts() == (len(keys), rows.stop)
    held = catalogue.images.rows()
    assert [row.image for row in held] == numbers
    assert [row.key for row in held] == keys
    assert [row.image for row in held if row.digest is not None] == decoded
    assert all(row.width == row.image + 1 for row in held if row.digest is not None)
    assert [(row.image, row.bad) for row in held if row.bad] == [(rows[5], "line\nbreak, ü")]
    columns = catalogue.images.columns()
    assert columns["key"][~columns["free"]].tolist() == keys
    assert columns["class_id"][numbers].tolist() == [row.class_id for row in held]
    assert catalogue.images.find(keys) == dict(zip(keys, numbers, strict=True))
    assert catalogue.images.rows([rows[5], 3]) == [held[numbers.index(rows[5])], held[3]]
    catalogue.verify_digests()


def test_an_image_is_found_although_the_search_column_is_damaged(sqlite_path, sqlite_url):
    with Catalogue.create(sqlite_url, uuid="u") as catalogue:
        catalogue.images.add(KEYS, [0, 0, 1], [1, 2, 3], [1, 2, 3])
        change(sqlite_path, "UPDATE image_blocks SET key_crc = zeroblob(12)")
        with pytest.raises(DamagedShard, match="image_blocks"):
            catalogue.images.find(KEYS)


def change(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.mark.slow
def test_images_of_format_1_come_over_as_they_were(tmp_path, sqlite_path, sqlite_url, monkeypatch):
    """Whatever the first format's table can hold: several blocks, free rows, facts or none, reasons."""
    (tmp_path / "versions").mkdir()
    shutil.copy(SCRIPTS / "versions" / "r0001_baseline.py", tmp_path / "versions")
    rng = np.random.default_rng(1)
    numbers = [*range(1500), *range(2100, 2110), *range(5000, 5300)]
    rows = []
    for at, row in enumerate(numbers):
        facts = (int(rng.integers(1, 9999)), 7, rng.bytes(16)) if at % 3 == 0 else (None,) * 3
        key = f"n{at % 7}/ü {at}.jpg"
        bad = f"reason {at}" if at % 100 == 5 else None
        rows.append(
            (row, key, at % 7 - 1, *facts, int(rng.integers(2**40)), -5 if at == 9 else at, bad)
        )
    engine = create_engine(sqlite_url)
    with engine.begin() as conn, monkeypatch.context() as patch:
        patch.setattr("labelstore.catalogue.migrations.SCRIPTS", tmp_path)
        upgrade(conn)
        conn.exec_driver_sql(f"INSERT INTO images VALUES ({', '.join('?' * 9)})", rows)
        conn.exec_driver_sql("INSERT INTO store VALUES ('u', 1, 0.0)")
        for name in ("images", "store"):
            table = Table(name, MetaData(), autoload_with=conn)
            write_digests(conn, table, [[tuple(row) for row in conn.execute(select(table))]])
    engine.dispose()
    with Catalogue.open(sqlite_url) as older:
        assert older.readonly
        assert older.format_version == 1
        read = older.images.rows()
    before = sqlite_path.stat().st_size
    assert Catalogue.migrate(sqlite_url) == ("0002",)
    assert sqlite_path.stat().st_size < before
    with Catalogue.open(sqlite_url) as catalogue:
        held = catalogue.images.rows()
        catalogue.verify_digests()
        assert catalogue.images.counts() == (len(numbers), 5300)
    names = [field.name for field in fields(ImageRow)]
    assert [tuple(getattr(row, name) for name in names) for row in held] == rows
    assert read == held
