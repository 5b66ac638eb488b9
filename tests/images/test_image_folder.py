"""Folders: torchvision's order, image keys, and what is refused."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.errors import LabelStoreError, RejectedInput
from labelstore.images import (
    HIDDEN,
    NO_IMAGE_NAME,
    OUTSIDE,
    check_key,
    ignored_words,
    is_hidden,
    scan_folder,
    torchvision_classes,
)

FILES = [
    "b/2.JPEG",
    "b/10.jpg",
    "b/B.png",
    "b/a.webp",
    "a/x.jpg",
    "a/sub/z.jpg",
    "a/sub-2/y.jpg",
    "a/sub/deep/w.tiff",
    "a/notes.txt",
    "a/.hidden.jpg",
    "a/jpg",
    "B/q.Ppm",
    "readme.jpg",
]


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(FILES):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * number)
    return tmp_path / "data"


def test_order_equals_torchvision(folder):
    datasets = pytest.importorskip("torchvision.datasets")
    theirs = datasets.ImageFolder(str(folder))
    ours = scan_folder(folder, hidden=True)
    assert list(ours.classes) == theirs.classes
    assert [str(ours.file(key)) for key in ours.keys] == [path for path, _ in theirs.samples]
    assert ours.class_ids.tolist() == theirs.targets
    assert len(ours) == len(theirs) == 10


def test_every_file_is_an_image_or_counted(folder):
    (folder / ".cache" / "deep").mkdir(parents=True)
    (folder / "a" / "sub" / ".thumbs").mkdir()
    for copy in (".cache/deep/x.jpg", ".cache/y.bin", "a/sub/.thumbs/z.jpg", "b/._2.JPEG"):
        (folder / copy).write_bytes(b"copy")
    ours = scan_folder(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(ours) + sum(ours.ignored.values()) == len(files)
    # readme.jpg; notes.txt and jpg; a/.hidden.jpg and the copies
    assert ours.ignored == {OUTSIDE: 1, NO_IMAGE_NAME: 2, HIDDEN: 5}
    assert not any(map(is_hidden, ours.keys))
    seen = ours.with_hidden()
    assert set(ours.keys) < set(seen.keys)
    assert ignored_words(ours.ignored).startswith("8 files ignored (")


@given(st.sets(st.from_regex(r"0?[0-9]{1,4}", fullmatch=True), min_size=1, max_size=12))
def test_numbers_are_sorted_as_numbers(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("numbers")
    for name in names:
        (root / name).mkdir()
        (root / name / "1.jpg").write_bytes(b"")
    ours = scan_folder(root, keys_only=True)
    assert list(ours.classes) == sorted(names, key=lambda name: (int(name), name))
    # the rows stay in torchvision's order, and each image is of its folder's class
    assert list(ours.keys) == sorted(f"{name}/1.jpg" for name in names)
    assert [f"{ours.classes[i]}/1.jpg" for i in ours.class_ids] == list(ours.keys)
    theirs = torchvision_classes(ours)
    assert list(theirs.classes) == sorted(names)
    assert [f"{theirs.classes[i]}/1.jpg" for i in theirs.class_ids] == list(ours.keys)


def test_a_class_that_the_order_lacks(folder):
    with pytest.raises(RejectedInput, match="class 'B' that is none of 2"):
        scan_folder(folder).with_classes(("a", "b"))


def test_sizes_and_times(folder):
    ours = scan_folder(folder)
    for key, size, mtime_ns in zip(ours.keys, ours.sizes, ours.mtimes_ns, strict=True):
        status = (folder / key).stat()
        assert (size, mtime_ns) == (status.st_size, status.st_mtime_ns)
    only = scan_folder(folder, keys_only=True)
    assert only.keys == ours.keys
    assert (only.sizes == -1).all()
    assert (only.mtimes_ns == -1).all()


def test_root_with_trailing_parts(folder, monkeypatch):
    expected = scan_folder(folder).keys
    monkeypatch.chdir(folder.parent)
    assert scan_folder(type(folder)("data")).keys == expected
    monkeypatch.chdir(folder)
    assert scan_folder(type(folder)()).keys == expected


def test_links_are_followed_but_not_in_circles(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").write_bytes(b"1")
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    assert scan_folder(folder).keys[-1] == "c/1.jpg"
    (folder / "a" / "sub" / "loop").symlink_to(folder / "a")
    with pytest.raises(RejectedInput, match="loop"):
        scan_folder(folder)


def test_names_on_disk_that_are_not_nfc(tmp_path):
    (tmp_path / "cafe\u0301").mkdir()
    (tmp_path / "cafe\u0301" / "1.jpg").write_bytes(b"1")
    ours = scan_folder(tmp_path)
    assert ours.keys == ("caf\u00e9/1.jpg",)
    assert ours.file(ours.keys[0]).read_bytes() == b"1"
    (tmp_path / "caf\u00e9").mkdir()
    (tmp_path / "caf\u00e9" / "1.jpg").write_bytes(b"2")
    with pytest.raises(RejectedInput, match="two files"):
        scan_folder(tmp_path)


def break_link(folder):
    (folder / "a" / "gone.jpg").symlink_to(folder / "nowhere")


def add_pipe(folder):
    os.mkfifo(folder / "a" / "pipe.jpg")


def add_backslash(folder):
    (folder / "a" / "x\\y.jpg").write_bytes(b"")


def add_not_utf8(folder):
    (folder / "a" / os.fsdecode(b"\xff.jpg")).write_bytes(b"")


def add_long_key(folder):
    (folder / "a" / ("x" * 200)).mkdir()
    (folder / "a" / ("x" * 200) / ("y" * 60 + ".jpg")).write_bytes(b"")


def add_empty_class(folder):
    (folder / "empty").mkdir()


@pytest.mark.parametrize("keys_only", [False, True])
@pytest.mark.parametrize(
    "damage", [break_link, add_pipe, add_backslash, add_not_utf8, add_long_key, add_empty_class]
)
def test_refused(folder, damage, keys_only):
    damage(folder)
    with pytest.raises(RejectedInput) as caught:
        scan_folder(folder, keys_only=keys_only)
    assert "\n" not in str(caught.value)


def test_no_folder_no_classes(tmp_path, folder):
    for root in (tmp_path / "missing", folder / "readme.jpg", folder / "B"):
        with pytest.raises(RejectedInput, match=root.name):
            scan_folder(root)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a//b",
        "a/",
        "..",
        "a/../b",
        "./a",
        "a/.",
        "a\\b",
        "a\0b",
        "x" * 256,
        "\u00e9" * 128,
        "\ud800",
    ],
)
def test_keys_that_are_refused(key):
    with pytest.raises(RejectedInput) as caught:
        check_key(key)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_a_checked_key_is_safe_and_stays(key):
    try:
        checked = check_key(key)
    except LabelStoreError:
        return
    assert check_key(checked) == checked
    assert len(checked.encode()) <= 255
    assert not {"", ".", ".."} & set(checked.split("/"))
    assert np.isin(list("\\\0"), list(checked)).sum() == 0


def test_longest_key_and_dots_inside_names():
    assert check_key("x" * 255) == "x" * 255
    assert check_key("a..b/...jpg") == "a..b/...jpg"
