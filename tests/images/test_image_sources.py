"""Whatever images lie in, all else sees the same keys, classes and bytes; what cannot be is refused in one line."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import tarfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.errors import RejectedInput, UsageError
from labelstore.images import are_there, file_finder, image_size, open_images, scan_folder
from labelstore.images.class_names import number_classes
from labelstore.images.tar_members import members
from tests.images.conftest import CLASSES, picture, save_dataset, write_list, write_tar

KINDS = ("folder", "list", "parquet", "tar", "datasets")


def keyed(kind, pictures):
    """What is expected under each key: `datasets` keeps no folders when it embeds files."""
    names = {key: key.rpartition("/")[2] if kind == "datasets" else key for key in pictures}
    return {names[key]: data for key, data in pictures.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_images(kinds, pictures, kind):
    source = open_images(kinds[kind])
    assert source.kind == ("list" if kind == "parquet" else kind)
    assert str(source.root) == kinds[kind]
    assert source.classes == CLASSES
    pictures = keyed(kind, pictures)
    assert sorted(source.keys) == sorted(pictures)
    for key, class_id, size in zip(source.keys, source.class_ids, source.sizes, strict=True):
        assert source.file(key).read_bytes() == pictures[key]
        assert key.rpartition("/")[2].startswith(CLASSES[class_id])
        assert size == len(pictures[key])
        assert image_size(source.file(key)) == image_size(pictures[key])
    assert (source.mtimes_ns > 0).all()
    assert open_images(source) is source
    assert are_there(kinds[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_in_threads_and_goes_to_other_processes(kinds, pictures, kind):
    source = pickle.loads(pickle.dumps(open_images(kinds[kind])))
    found, pictures = {}, keyed(kind, pictures)

    def read(keys):
        for _ in range(20):
            found.update({key: source.file(key).read_bytes() for key in keys})

    keys = list(pictures)
    threads = [threading.Thread(target=read, args=(keys[i:] + keys[:i],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == pictures


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_is_found_by_its_key(kinds, pictures, kind):
    find, key = file_finder(kinds[kind]), "cat2.png" if kind == "datasets" else "cat/cat2.png"
    assert find(key).read_bytes() == pictures["cat/cat2.png"]
    with pytest.raises(FileNotFoundError):
        find("cat/cat3.png").read_bytes()


def test_a_folder_is_what_it_always_was(kinds):
    ours, old = open_images(kinds["folder"]), scan_folder(Path(kinds["folder"]))
    assert ours.keys == old.keys
    assert (ours.sizes == old.sizes).all()
    assert (open_images(kinds["folder"], keys_only=True).sizes == -1).all()


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.booleans())
def test_numbers_are_class_ids(numbers, as_text):
    values = [str(number) for number in numbers] if as_text else numbers
    classes, ids = number_classes(values, str)
    assert ids.tolist() == numbers
    assert classes == tuple(map(str, range(max(numbers) + 1)))


@given(st.lists(st.text("ab1", min_size=1, max_size=3), min_size=1, max_size=20))
def test_names_are_sorted_as_folders_are(names):
    classes, ids = number_classes([*names, "x"], str)
    assert [classes[i] for i in ids] == [*names, "x"]
    assert list(classes) == sorted(classes)


@pytest.mark.parametrize("value", ["-1", -1, 1 << 40, "", " ", "a\nb", "x" * 300])
def test_no_class(value):
    with pytest.raises(RejectedInput, match=r"^here has class"):
        number_classes([value], lambda row: "here")


# -- lists -----------------------------------------------------------------------------------------

HEADER = ("path", "class")


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("a.jpg", "cat")], ("file", "class"), "needs one column `path`, it has file, class"),
        ([("a.jpg", "cat")], ("path", "path"), "needs one column `path`"),
        ([("a.jpg", "cat")], ("path", "label"), "needs one column `class`"),
        ([], HEADER, "lists no image"),
        ([("a.jpg", "cat"), ("a.jpg", "dog")], HEADER, "row 3: a.jpg is in row 2 already"),
        ([("../a.jpg", "cat")], HEADER, "row 2: image key '../a.jpg' must be a relative path"),
        ([("b/../../a.jpg", "cat")], HEADER, "must be a relative path"),
        ([("/etc/passwd", "cat")], HEADER, "must be a relative path"),
        ([("a.jpg\0", "cat")], HEADER, "must be a relative path|NUL"),
        ([("a.txt", "cat")], HEADER, "is not an image's name"),
        ([("none.jpg", "cat")], HEADER, "row 2: .*none.jpg is not there"),
        ([("folder.jpg", "cat")], HEADER, "folder.jpg is not a file"),
        ([("a.jpg", "")], HEADER, "row 2 has class ''"),
        ([("a.jpg",)], HEADER, "line 2 has 1 values, the header 2"),
        ([("a.jpg", "x" * 200_000)], HEADER, "is not a CSV file|has class"),
    ],
)
def test_a_list_that_cannot_be(tmp_path, rows, header, message):
    (tmp_path / "a.jpg").write_bytes(picture(0))
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(RejectedInput, match=message) as raised:
        open_images(write_list(tmp_path / "list.csv", rows, header))
    assert "\n" not in str(raised.value)


def test_lists_that_are_none(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"path,class\n\xff\xfe,1\n")
    (tmp_path / "quotes.csv").write_text('path,class\n"a.jpg"x,1\n')
    (tmp_path / "list.parquet").write_bytes(b"PAR1 and no more")
    for name in ("list.csv", "quotes.csv", "list.parquet"):
        with pytest.raises(RejectedInput, match=f"{name} is not a"):
            open_images(tmp_path / name)
    with pytest.raises(RejectedInput, match="nowhere is not a folder"):
        open_images(f"{tmp_path / 'list.csv'}:{tmp_path / 'nowhere'}")
    for name in ("none.csv", "none", "none.tar", "s-{0..1}.tar"):
        with pytest.raises(RejectedInput):
            open_images(tmp_path / name)
        assert not are_there(tmp_path / name)
    with pytest.raises(RejectedInput, match="must count upwards"):
        open_images(tmp_path / "s-{3..1}.tar")
    with pytest.raises(RejectedInput, match="must count upwards"):
        open_images(tmp_path / "s-{0..9}{0..99999}.tar")


def test_a_parquet_list_of_numbers_and_of_nothing(tmp_path):
    (tmp_path / "é.jpg").write_bytes(picture(0))
    path = tmp_path / "list.parquet"
    # a name that is not in NFC is found as it is spelled
    spelled = "e\u0301.jpg" if sys.platform == "darwin" else "é.jpg"
    pq.write_table(pa.table({"path": [spelled], "class": pa.array([7], pa.int16())}), path)
    found = open_images(path)
    assert found.class_ids.tolist() == [7]
    assert len(found.classes) == 8
    for columns in (
        {"path": ["é.jpg"]},
        {"path": ["é.jpg"], "class": [None]},
        {"path": [1], "class": [1]},
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(RejectedInput, match="column"):
            open_images(path)


# -- tar -------------------------------------------------------------------------------------------

NAMES = st.text("abcdé/._ ", min_size=1, max_size=300).filter(
    lambda name: not name.endswith("/") and name.strip("/") == name
)


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1200)), max_size=8, unique_by=lambda m: m[0]),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_members_are_what_python_reads(tmp_path_factory, written, form):
    path = write_tar(tmp_path_factory.getbasetemp() / "members.tar", written, form=form)
    with tarfile.open(path) as archive:
        theirs = [(m.name, archive.extractfile(m).read()) for m in archive.getmembers()]
    data = path.read_bytes()
    ours = [(m.name, data[m.offset : m.offset + m.size]) for m in members(path)]
    assert ours == theirs
    assert [m.small for m in members(path, wanted=("",))] == [part for _, part in theirs]


def test_every_cut_is_seen(tmp_path, pictures):
    whole = write_tar(tmp_path / "a.tar", [("a.jpg", pictures["cat/cat0.jpg"]), ("a.cls", b"1")])
    assert open_images(whole).classes == ("0", "1")
    data = whole.read_bytes()
    used = len(data.rstrip(b"\0"))
    cut = tmp_path / "cut.tar"
    for size in (0, 1, 300, 512, 700, 2000, used - 1, used, -(-used // 512) * 512):
        cut.write_bytes(data[:size])
        with pytest.raises(RejectedInput, match=r"cut off|no tar file"):
            open_images(cut)
    # a shard that shrinks while it is in use
    source = open_images(whole)
    whole.write_bytes(data[:600])
    with pytest.raises(RejectedInput, match=r"a.tar: a.jpg is cut off"):
        source.file("a.jpg").read_bytes()


@given(st.integers(0, 511), st.integers(1, 255))
def test_a_changed_header_is_refused(tmp_path_factory, at, change):
    path = write_tar(
        tmp_path_factory.getbasetemp() / "changed.tar", [("a.jpg", b"1234"), ("a.cls", b"1")]
    )
    data = bytearray(path.read_bytes())
    data[at] ^= change
    path.write_bytes(data)
    if 148 <= at < 156:  # the sum's own digits, beside which blanks and zeros may stand
        with suppress(RejectedInput):
            assert open_images(path).keys == ("a.jpg",)
        return
    with pytest.raises(RejectedInput):
        open_images(path)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([("a.jpg", b"1")], "a.jpg has no class"),
        ([("a.jpg", b"1"), ("a.json", b'{"x": 1}')], "a.jpg has no class"),
        ([("a.jpg", b"1"), ("a.json", b"[" * 9000)], "a.json is not JSON"),
        ([("a.jpg", b"1"), ("a.json", b'{"label": [1]}')], "a.json has class"),
        ([("a.jpg", b"1"), ("a.cls", b"  ")], "a.cls is empty"),
        ([("a.jpg", b"1"), ("a.cls", b"\xff")], "a.cls is not text"),
        ([("a.jpg", b"1"), ("a.cls", b"1" * (2 << 20))], "are allowed"),
        ([("a.jpg", b"1"), ("a.png", b"2"), ("a.cls", b"1")], "a.jpg and a.png are two images"),
        ([("a.jpg", b"1"), ("a.jpg", b"2"), ("a.cls", b"1")], "a.jpg and a.jpg are two images"),
        ([("../a.jpg", b"1"), ("../a.cls", b"1")], "must be a relative path"),
        ([("/a.jpg", b"1"), ("/a.cls", b"1")], "must be a relative path"),
        ([("b\\a.jpg", b"1"), ("b\\a.cls", b"1")], "must be a relative path"),
        ([("x/" * 140 + "a.jpg", b"1"), ("x/" * 140 + "a.cls", b"1")], "shorten it"),
        ([("a.jpg", b"1"), ("a.cls", b"1"), ("b.cls", b"2")], "b has a class and no image"),
        ([("readme.txt", b"1")], "holds no image"),
    ],
)
def test_a_shard_that_cannot_be(tmp_path, written, message):
    with pytest.raises(RejectedInput, match=message) as raised:
        open_images(write_tar(tmp_path / "a.tar", written))
    assert "\n" not in str(raised.value)


def test_a_dot_in_a_name_is_no_end(tmp_path):
    written = [
        ("c/a.b.1.jpg", b"1"), ("c/a.b.1.cls", b"x"),
        ("c/a.b.2.jpg", b"2"), ("c/a.b.2.json", b'{"label": "y"}'),
        ("7.jpg", b"3"), ("7.cls", b"x"), ("7.depth.png", b"4"), ("7.meta.json", b"no JSON"),
        ("8.left.jpg", b"5"), ("8.cls", b"y"),
        ("._9.jpg", b"6"), ("readme.txt", b"7"), ("jpg", b"8"),
    ]  # fmt: skip
    found = open_images(write_tar(tmp_path / "a.tar", written))
    assert found.keys == ("c/a.b.1.jpg", "c/a.b.2.jpg", "7.jpg", "8.left.jpg")
    assert [found.classes[i] for i in found.class_ids] == ["x", "y", "x", "y"]
    assert found.ignored == {"hidden": 1, "not an image's ending": 2, "another part of a sample": 1}
    for more, message in (
        ([("9.a.jpg", b"1"), ("9.b.jpg", b"2"), ("9.cls", b"x")], "two images of one sample"),
        ([("9.a.jpg", b"1"), ("9.b.cls", b"x")], r"9.a.jpg has no class: add a member 9.a.cls"),
    ):
        with pytest.raises(RejectedInput, match=message):
            open_images(write_tar(tmp_path / "b.tar", [*written, *more]))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 5))
def test_appended_archives_are_read_to_the_end(tmp_path_factory, sizes, padding):
    folder = tmp_path_factory.mktemp("appended")
    data, expected = b"", []
    for number, size in enumerate(sizes):
        written = [(f"{number}-{i}", bytes([i]) * 700) for i in range(size)]
        expected += written
        data += write_tar(folder / "one.tar", written).read_bytes() + bytes(512 * padding)
    (folder / "all.tar").write_bytes(data)
    ours = [(m.name, data[m.offset : m.offset + m.size]) for m in members(folder / "all.tar")]
    assert ours == expected
    (folder / "all.tar").write_bytes(data + b"more" * 200)
    with pytest.raises(RejectedInput, match="after its end mark"):
        list(members(folder / "all.tar"))


def test_a_folder_of_shards_counts_what_lies_beside(tmp_path):
    write_tar(tmp_path / "s.tar", [("0.jpg", b"1"), ("0.cls", b"3")])
    (tmp_path / "s2.tar.gz").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "._s.tar").write_bytes(b"")
    assert open_images(tmp_path).ignored == {"beside the tar files": 3}


def test_a_path_that_looks_like_a_pattern(tmp_path, pictures):
    place = tmp_path / "s{0..3}"
    place.mkdir()
    shard = write_tar(place / "a.tar", [("a.jpg", pictures["cat/cat0.jpg"]), ("a.cls", b"1")])
    (place / "cat").mkdir()
    (place / "cat" / "1.jpg").write_bytes(b"")
    write_list(place / "list.csv", [("cat/1.jpg", "cat")], HEADER)
    assert open_images(shard).keys == ("a.jpg",)
    assert open_images(place).keys == open_images(place / "list.csv").keys == ("cat/1.jpg",)
    assert are_there(place)
    assert are_there(shard)


def test_links_and_packed_shards_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(RejectedInput, match=r"a.jpg is a link"):
        open_images(tmp_path / "a.tar")
    for mode in ("gz", "bz2", "xz"):
        path = tmp_path / f"{mode}.tar"
        with tarfile.open(path, f"w:{mode}") as archive:
            archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
        with pytest.raises(RejectedInput, match="is compressed with"):
            open_images(path)


def test_names_that_come_in_every_shard_get_the_shards_in_front(tmp_path):
    for shard in ("one", "two"):
        write_tar(tmp_path / f"{shard}.tar", [("0.jpg", shard.encode()), ("0.cls", b"3")])
    found = open_images(tmp_path)  # a folder of shards
    assert found.keys == ("one/0.jpg", "two/0.jpg")
    assert found.file("two/0.jpg").read_bytes() == b"two"
    assert str(found.file("two/0.jpg")).endswith("two.tar: 0.jpg")


# -- datasets --------------------------------------------------------------------------------------


def test_rows_are_keys_where_paths_are_not(tmp_path, pictures):
    data = list(pictures.values())[:3]
    save_dataset(tmp_path / "d", [{"bytes": d, "path": None} for d in data], [0, 5, 1], typed=False)
    found = open_images(tmp_path / "d")
    assert found.keys == ("00000000", "00000001", "00000002")
    assert found.class_ids.tolist() == [0, 5, 1]
    assert [found.file(key).read_bytes() for key in found.keys] == data


def test_images_beside_the_arrow_files(tmp_path, pictures):
    import datasets

    datasets.disable_progress_bars()
    names = ["in/a.jpg", "in/b.jpg"]
    table = {"img": names, "class": ["cat", "dog"]}
    datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "d")
    with pytest.raises(RejectedInput, match=r"row 0: its image is 'in/a.jpg', which is no file"):
        open_images(tmp_path / "d")
    (tmp_path / "d" / "in").mkdir()
    for name, data in zip(names, pictures.values(), strict=False):
        (tmp_path / "d" / name).write_bytes(data)
    found = open_images(tmp_path / "d")
    assert found.keys == tuple(names)
    assert found.classes == ("cat", "dog")
    assert found.file("in/b.jpg").read_bytes() == list(pictures.values())[1]
    assert found.sizes.tolist() == [len(data) for data in list(pictures.values())[:2]]


def test_a_data_set_that_cannot_be(tmp_path, pictures):
    import datasets

    datasets.disable_progress_bars()
    encoded = {"bytes": next(iter(pictures.values())), "path": None}

    def refused(name, message, **columns):
        path = tmp_path / name
        datasets.Dataset.from_dict(columns).save_to_disk(path)
        with pytest.raises(RejectedInput, match=message) as raised:
            open_images(path)
        assert "\n" not in str(raised.value)

    refused("text", "has columns text, label and none of images", text=["a"], label=[1])
    refused("no-class", "none called `label`", image=[encoded])
    refused("outside", "no file inside the data set's folder", image=["../a.jpg"], label=[1])
    refused("absolute", "no file inside the data set's folder", image=["/etc/passwd"], label=[1])
    refused("null", "row 0 has neither bytes nor a path", image=[None, "a"], label=[1, 1])
    refused("bad-class", "row 0: column label", image=[encoded], label=[1.5])
    refused("negative", "row 0 has class -1", image=[encoded], label=[-1])
    both = datasets.Dataset.from_dict({"image": [encoded], "label": [0]})
    datasets.DatasetDict({"a": both, "b": both}).save_to_disk(tmp_path / "splits")
    with pytest.raises(
        RejectedInput, match=r"several splits: give one of them \(.*splits/a, .*/b\)"
    ):
        open_images(tmp_path / "splits")
    whole = tmp_path / "splits" / "a"
    arrow = next(whole.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:200])
    with pytest.raises(RejectedInput, match="cannot be read by `datasets`"):
        open_images(whole)
    (whole / "state.json").write_text(json.dumps([1]))
    with pytest.raises(RejectedInput, match="cannot be read by `datasets`"):
        open_images(whole)


def test_a_path_that_looks_like_a_url(kinds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = open_images(kinds["datasets"]).keys
    for name in ("file:x", "q?x", "a#b", "100%20", "*"):
        shutil.copytree(kinds["datasets"], name)
        for path in (Path(name), tmp_path / name):
            assert open_images(path).keys == keys
    shutil.copytree(kinds["datasets"], "a::b")
    with pytest.raises(RejectedInput, match="chain of URLs"):
        open_images("a::b")
    Path("link").symlink_to("a::b")
    assert open_images("link").keys == keys


def test_the_extra_is_named(kinds, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"labelstore\[datasets\]"):
        open_images(kinds["datasets"])
    # nobody else needs it
    assert len(open_images(kinds["tar"])) == 9


def test_a_row_that_is_damaged_is_named(tmp_path):
    save_dataset(tmp_path / "d", [{"bytes": b"no image", "path": None}], [0], typed=False)
    source = open_images(tmp_path / "d")
    with pytest.raises(RejectedInput, match=r"d, row 0 is not an image"):
        image_size(source.file("00000000"))
    tar = write_tar(tmp_path / "a.tar", [("a.jpg", b"\xff\xd8\xff\xe0 no"), ("a.cls", b"1")])
    with pytest.raises(RejectedInput, match=r"a.tar: a.jpg"):
        image_size(open_images(tar).file("a.jpg"))
    assert np.array_equal(open_images(tar).sizes, [7])
