"""Whether labels fit where they are to be laid out: on a disk, or in memory that looks like one.

On many systems the temporary folder is a tmpfs, whose files take the memory that training needs (Linux only; elsewhere
the free space is all that is looked at).
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

from labelstore.errors import StorageError
from labelstore.scratch.folders import storage_errors

MOUNTS, MEMORY = Path("/proc/self/mountinfo"), Path("/proc/meminfo")
GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
IN_MEMORY = ("tmpfs", "ramfs")
SHARE = 0.5
"""Share of the available memory that labels may take: batches, network and page cache need the rest."""


def check_room(folder: Path, num_bytes: int, *, what: str = "labels") -> None:
    """StorageError where `num_bytes` more do not fit into a folder, or comfortably into memory if that is where it
    is."""
    kind = file_system(folder)
    with storage_errors(folder):
        room, where = shutil.disk_usage(folder).free, "free there"
    if kind in IN_MEMORY and (available := available_memory()) is not None:
        # a ramfs has no size of its own
        room = int(SHARE * available) if kind == "ramfs" else min(room, int(SHARE * available))
        where = f"that may be taken of the memory which this is ({kind})"
    if num_bytes > room:
        raise StorageError(
            f"{folder}: {what} take {num_bytes / 1e9:.3g} GB, more than the {room / 1e9:.3g} GB {where}; "
            "choose a folder on another disk with `scratch`"
        )


def file_system(path: Path) -> str | None:
    """The type of the file system that a path is on ("ext4", "tmpfs"); None where the system does not say."""
    place, found = path.resolve(), None
    longest = -1
    for line in _lines(MOUNTS):
        # 36 35 98:0 /root /mount/point options [optional fields] - type source options
        mount, _, about = line.partition(" - ")
        fields, kind = mount.split(), about.split(maxsplit=1)
        if len(fields) < 5 or not kind:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        # of several on one point the last one is seen
        if place.is_relative_to(point) and len(point.parts) >= longest:
            longest, found = len(point.parts), kind[0]
    return found


def available_memory() -> int | None:
    """Bytes that can be had without swapping, by the machine and by the limits of this process's control group (v2)."""
    available = [
        1024 * int(line.split()[1]) for line in _lines(MEMORY) if line.startswith("MemAvailable:")
    ]
    own = next((line[3:] for line in _lines(GROUP) if line.startswith("0::")), "/")
    group = GROUPS / own.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(GROUPS):
            break
        limit, taken = (_number(folder / f"memory.{name}") for name in ("max", "current"))
        if limit is not None and taken is not None:
            # what is only a copy of a disk's file goes when memory is wanted
            cached = [
                int(line.split()[1])
                for line in _lines(folder / "memory.stat")
                if line.startswith(("active_file ", "inactive_file "))
            ]
            available.append(max(limit - taken + sum(cached), 0))
    return min(available, default=None)


def _number(path: Path) -> int | None:
    first = next(iter(_lines(path)), "")
    return int(first) if first.strip().isdecimal() else None


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return []
