"""Labels of a pass go where they fit: memory that looks like a disk, and full disks, are refused before anything
is written."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from labelstore.errors import StorageError
from labelstore.scratch import room
from tests.flat_options import StoredPasses
from trainer.sampler import PassSchedule

GB = 10**9
Usage = collections.namedtuple("Usage", "total used free")
MOUNTS = """\
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
31 22 0:27 / /tmp rw,nosuid shared:14 - tmpfs tmpfs rw,size=16g
32 31 0:28 / /tmp/of\\040mine rw - xfs /dev/sdb1 rw
33 22 0:29 / /old rw - ext4 /dev/sdc1 rw
34 22 0:30 / /old rw - ramfs ramfs rw
a line that is none
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Mounts and memory of another machine: 16 GB free in /tmp, 8 GB of memory."""
    (tmp_path / "mountinfo").write_text(MOUNTS)
    (tmp_path / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable:    7812500 kB\n")
    (tmp_path / "cgroup").write_text("1:name=other:/\n0::/job/step\n")
    groups = tmp_path / "groups"
    (groups / "job" / "step").mkdir(parents=True)
    monkeypatch.setattr(room, "MOUNTS", tmp_path / "mountinfo")
    monkeypatch.setattr(room, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(room, "GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(room, "GROUPS", groups)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: Usage(0, 0, 16 * GB))
    return groups


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/tmpfiles", "ext4"),
        ("/tmp", "tmpfs"),
        ("/tmp/labelstore-passes-1", "tmpfs"),
        ("/tmp/of mine/x", "xfs"),
        ("/old/x", "ramfs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_mount_it_is_under(machine, path, kind):
    assert room.file_system(Path(path)) == kind


def test_memory_is_what_machine_and_control_groups_leave(machine):
    assert room.available_memory() == 8 * GB
    job = machine / "job"
    (job / "memory.max").write_text(f"{6 * GB}\n")
    (job / "memory.current").write_text(f"{5 * GB}\n")
    (job / "memory.stat").write_text(
        f"anon {GB}\ninactive_file {GB}\nactive_file {2 * GB}\nshmem 7\n"
    )
    (job / "step" / "memory.max").write_text("max\n")
    (job / "step" / "memory.current").write_text("1\n")
    assert room.available_memory() == 4 * GB
    (job / "memory.current").write_text(f"{9 * GB}\n")
    (job / "memory.stat").unlink()
    assert room.available_memory() == 0


@pytest.mark.parametrize(
    ("folder", "fits"), [("/tmp/x", 4), ("/old/x", 4), ("/tmp/of mine/x", 16), ("/elsewhere", 16)]
)
def test_what_does_not_fit_comfortably_is_refused(machine, folder, fits):
    room.check_room(Path(folder), fits * GB)
    with pytest.raises(StorageError, match=rf"{folder}: .* {fits} GB .*`scratch`") as caught:
        room.check_room(Path(folder), fits * GB + 10**8)
    assert "\n" not in str(caught.value)
    assert ("memory" in str(caught.value)) == (fits == 4)


def test_where_the_system_says_nothing_free_space_decides(tmp_path, monkeypatch):
    for name in ("MOUNTS", "MEMORY", "GROUP", "GROUPS"):
        monkeypatch.setattr(room, name, tmp_path / "none")
    assert room.file_system(tmp_path) is None
    assert room.available_memory() is None
    room.check_room(tmp_path, 1)
    with pytest.raises(StorageError, match="free there"):
        room.check_room(tmp_path, 1 << 62)
    with pytest.raises(StorageError, match="`scratch"):
        room.check_room(tmp_path / "gone", 1)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory of Linux")
def test_this_machines_shared_memory_is_found():
    assert room.file_system(Path("/dev/shm")) in room.IN_MEMORY


@pytest.mark.parametrize("range_", [(0.0, 1.0), (0.01, 1.0)])
def test_a_pass_asks_for_as_many_bytes_as_it_writes(labels, scratch, monkeypatch, range_):
    """Whole chunk columns, or all crops where some are left out."""
    asked = []
    monkeypatch.setattr(
        "trainer.loader.source.check_room", lambda folder, size: asked.append((folder, size))
    )
    schedule = PassSchedule.of(passes=2, crops_per_image=4)
    with StoredPasses(
        labels, schedule=schedule, scratch=scratch, probability_range=range_, keep_draws=1.0,
        allow_empty_images=True,
    ) as source:  # fmt: skip
        source.pass_labels(0)
        size = sum(
            len(source.table) * source.planes.dtype.itemsize
            for _ in source.folder.glob("plane-*.npy")
        )
        assert asked == [(source.folder, size)]


def test_nothing_is_written_where_it_does_not_fit(labels, scratch, monkeypatch):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: Usage(0, 0, 10))
    schedule = PassSchedule.of(passes=2, crops_per_image=4)
    with StoredPasses(
        labels, schedule=schedule, scratch=scratch, allow_empty_images=True
    ) as source:
        with pytest.raises(StorageError, match="`scratch"):
            source.pass_labels(0)
        assert not list(source.folder.glob("*plane*"))
