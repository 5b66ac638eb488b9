"""Large tables of images are kept as columns in a cache folder: never another table's, and never wrong."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from labelstore.store.user_cache import DIGEST_BYTES, image_columns

DIGEST = bytes(range(16))


@pytest.fixture
def settled(catalogue):
    """Four images and a free row: two decoded, two left out."""
    catalogue.images.add(["a/ä.jpg", "a/2.jpg", "b/3.jpg"], [0, 0, 1], [10, 20, 30], [1, 2, 3])
    catalogue.images.append(["b/4.jpg"], [1], [40], [4], multiple=4)
    with catalogue.transaction() as conn:
        catalogue.images.record_facts(conn, [(0, 640, 480, DIGEST), (4, 3, 4, DIGEST[::-1])])
        catalogue.images.mark_bad(conn, 1, 'its header says "\n"')
        catalogue.images.mark_bad(conn, 2, "truncated")
    return catalogue


def read(catalogue, cache, **given):
    return image_columns(catalogue, min_rows=1, cache=cache, **given)


def files(cache):
    return sorted((cache / "images").glob("*")) if (cache / "images").exists() else []


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, column in wanted.items():
        assert found[name].dtype == column.dtype, name
        np.testing.assert_array_equal(found[name], column, err_msg=name)


def test_kept_columns_are_the_tables(settled, tmp_path, monkeypatch):
    wanted = settled.images.columns()
    assert_same(read(settled, tmp_path), wanted)
    assert len(files(tmp_path)) == 1
    monkeypatch.setattr(type(settled.images), "columns", lambda self: pytest.fail("read again"))
    assert_same(read(settled, tmp_path), wanted)


def test_a_changed_table_is_read_again_and_the_old_file_goes(settled, tmp_path):
    read(settled, tmp_path)
    (before,) = files(tmp_path)
    with settled.transaction() as conn:
        settled.images.mark_bad(conn, 4, "is gone")
    assert_same(read(settled, tmp_path), settled.images.columns())
    (after,) = files(tmp_path)
    assert before != after


def test_tables_that_are_small_or_still_change_are_not_kept(catalogue, tmp_path):
    catalogue.images.add(["a/1.jpg"], [0], [10], [1])
    read(catalogue, tmp_path)
    assert not files(tmp_path)
    with catalogue.transaction() as conn:
        catalogue.images.record_facts(conn, [(0, 640, 480, DIGEST)])
    image_columns(catalogue, cache=tmp_path)
    assert not files(tmp_path)
    read(catalogue, tmp_path)
    assert files(tmp_path)


@pytest.mark.sample(1)
def test_any_flipped_byte_leads_back_to_the_table(settled, tmp_path):
    wanted = settled.images.columns()
    read(settled, tmp_path)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 60).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert_same(read(settled, tmp_path), wanted)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert_same(read(settled, tmp_path), wanted)


def made_up(path, head=None, **parts):
    """The cache's file with another head or other columns, all digests as they should be."""
    whole = path.read_bytes()
    start = DIGEST_BYTES + 8
    length = int.from_bytes(whole[DIGEST_BYTES:start], "little")
    known, body = json.loads(whole[start : start + length]), whole[start + length :]
    columns = {name: body[at : at + size] for name, (at, size, _) in known["parts"].items()} | parts
    places, end = {}, 0
    for name, data in columns.items():
        places[name] = [end, len(data), hashlib.blake2b(data, digest_size=32).hexdigest()]
        end += len(data)
    text = json.dumps({**known, "parts": places, **(head or {})}).encode()
    digest = hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()
    path.write_bytes(digest + len(text).to_bytes(8, "little") + text + b"".join(columns.values()))


@pytest.mark.parametrize(
    "change",
    [
        {"key": b"../../etc/x\na/2.jpg\nb/3.jpg\n\nb/4.jpg"},
        {"key": b"a/1.jpg"},
        {"key": b"a/1.jpg\n\nb/3.jpg\na/2.jpg\nb/4.jpg"},
        {"bad": b'{"99": "?"}'},
        {"bad": b"[]"},
        {"digest": b"1"},
        {"head": {"format": 3}},
        {"head": {"rows": 1 << 60}},
        {"head": {"parts": {"key": [0, 1 << 62, ""], "free": [-(1 << 70), 5, ""], "bad": 3}}},
    ],
)
def test_a_made_up_file_is_not_believed(settled, tmp_path, change):
    wanted = settled.images.columns()
    read(settled, tmp_path)
    (path,) = files(tmp_path)
    made_up(path, **change)
    assert_same(read(settled, tmp_path), wanted)


def test_only_the_columns_that_are_asked_for_are_read(settled, tmp_path):
    wanted = settled.images.columns()
    read(settled, tmp_path)
    (path,) = files(tmp_path)
    found = read(settled, tmp_path)
    assert found["class_id"].tolist() == wanted["class_id"].tolist()
    path.unlink()
    assert_same(found, wanted)  # the rest from the table


def test_a_cache_that_cannot_be_written_is_done_without(settled, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert_same(read(settled, blocked), settled.images.columns())
