from __future__ import annotations

import numpy as np
import pytest

from labelstore.errors import ConflictError, UsageError

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
