"""A spool keeps whole records on a disk that runs full, and leads nowhere in a store that somebody else made."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest

from labelstore.catalogue.records import Lease
from labelstore.commit import spool as module
from labelstore.commit.spool import LabelledImage, Spool, read_spools, remove_spools, spooled_crops
from labelstore.errors import RejectedInput, StorageError

LEASE = Lease(group="labels/a", block=0, owner="me", expires=1.0, fence=1)


def labelled(image: int) -> LabelledImage:
    boxes = np.full((3, 4), image, "u2")
    return LabelledImage(image=image, height=1, width=1, digest=b"\0" * 16, arrays={"box": boxes})


def spooled(folder, *images, lease=LEASE):
    spool = Spool(folder, lease, "uuid")
    for image in images:
        spool.append(labelled(image))
    return spool


def test_a_disk_that_takes_a_few_bytes_at_a_time(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    spool = spooled(tmp_path / "a", 0, 1, 2)
    spool.close()
    spool.close()
    found = read_spools(tmp_path / "a", 0, "uuid")
    assert list(found) == [0, 1, 2]
    np.testing.assert_array_equal(found[2].arrays["box"], labelled(2).arrays["box"])


@pytest.mark.parametrize("cut", [True, False])
def test_a_disk_that_is_full_in_the_middle_of_a_record(tmp_path, monkeypatch, cut):
    spool = spooled(tmp_path / "a", 0)
    write = os.write

    def full(file, data):
        if len(data) < 40:
            raise OSError(28, "No space left on device")
        return write(file, data[:30])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        if not cut:  # the disk does not even take the torn record back
            patch.setattr(os, "ftruncate", lambda *_: full(0, b""))
        with pytest.raises(StorageError, match="no space left on the disk"):
            spool.append(labelled(1))
    if cut:
        spool.append(labelled(2))
    else:
        with pytest.raises(StorageError, match="closed"):
            spool.append(labelled(2))
    spool.close()
    assert list(read_spools(tmp_path / "a", 0, "uuid")) == ([0, 2] if cut else [0])
    assert spooled_crops(tmp_path / "a") == {0: 6 if cut else 3}


def test_links_pipes_and_other_names_are_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    precious = outside / "0-1.spool"
    precious.write_bytes(b"precious")
    folder = tmp_path / "a"
    path = folder / "0-1.spool"

    def refused():
        for work in (
            lambda: Spool(folder, LEASE, "uuid"),
            lambda: read_spools(folder, 0, "uuid"),
            lambda: spooled_crops(folder),
        ):
            with pytest.raises(RejectedInput, match="is a link, or no"):
                work()

    folder.symlink_to(outside)
    refused()
    with pytest.raises(RejectedInput):
        remove_spools(folder, 0)
    folder.unlink()
    folder.mkdir()
    for put in (path.symlink_to, path.hardlink_to):
        put(precious)
        refused()
        remove_spools(folder, 0)
    os.mkfifo(path)
    refused()
    assert precious.read_bytes() == b"precious"


def test_an_absurd_length_is_not_asked_of_memory(tmp_path, monkeypatch):
    spool = spooled(tmp_path / "a", 0)
    spool.close()
    with spool.path.open("ab") as file:
        file.write(struct.pack("<II", 0xFFFFFFFF, 0))
        file.truncate(8 << 30)  # sparse
    assert list(read_spools(tmp_path / "a", 0, "uuid")) == [0]
    assert spooled_crops(tmp_path / "a") == {0: 3}
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 10)
    spooled(tmp_path / "b", 0).close()
    assert read_spools(tmp_path / "b", 0, "uuid") == {}


@pytest.mark.parametrize(
    "head", [b"[" * 50_000, b"[]", b'{"label_set":"uuid"}', b'{"label_set":"uuid","image":[]}']
)
def test_a_head_that_no_worker_writes_ends_the_spool(tmp_path, head):
    import google_crc32c

    spool = spooled(tmp_path / "a", 0)
    spool.close()
    payload = struct.pack("<I", len(head)) + head
    with spool.path.open("ab") as file:
        file.write(struct.pack("<II", len(payload), google_crc32c.value(payload)) + payload)
    assert list(read_spools(tmp_path / "a", 0, "uuid")) == [0]
    assert spooled_crops(tmp_path / "a") == {0: 3}
