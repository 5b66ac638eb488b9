"""A power loss, as a model: what a disk may hold after a process changed it and the machine went down.

The process's system calls are recorded with their bytes (`record`). `Disk` replays them up to any call and
then gives states that POSIX allows. What was fsynced is there. Of what was not, each write may have arrived,
not arrived, arrived in part, or be zeros; each change of a folder may have happened or not, in order for one
name and in any order for different ones; a file or folder whose name did not reach the disk is gone with
all that is in it. An fsync of a file says nothing of its name.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from tests.stress.strace import calls

TRACED = (
    "openat,close,lseek,write,pwrite64,writev,pwritev,fsync,fdatasync,rename,renameat,renameat2,"
    "unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,ftruncate,truncate,fallocate"
)
OPTIONS = ("-s", "10000000", "-xx", f"-etrace={TRACED}")
NOT_MODELLED = ("writev", "pwritev", "link", "linkat", "truncate", "fallocate")
SECTOR = 512

_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(-?\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*|[^>]*)>")


@dataclass(eq=False)
class Node:
    """A file or folder, whatever its names are."""

    is_folder: bool = False
    data: bytes = b""
    """What is certainly on the disk."""
    waiting: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Writes (offset, bytes) and truncations (size, None) since the last fsync."""
    names: dict[str, Node] = field(default_factory=dict)
    """Of a folder: names that are certainly on the disk."""
    changes: list[tuple[tuple[str, Node | None], ...]] = field(default_factory=list)
    """Of a folder: since its fsync, sets of (name, what it then stands for) that happen together."""

    def now(self) -> dict[str, Node]:
        """Names as the process sees them."""
        names = dict(self.names)
        for together in self.changes:
            _apply(names, together)
        return names

    def sync(self) -> None:
        """fsync."""
        if self.is_folder:
            self.names, self.changes = self.now(), []
        else:
            self.data, self.waiting = _written(self.data, self.waiting), []


def _apply(names: dict[str, Node], together) -> None:
    for name, node in together:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _written(data: bytes, writes) -> bytes:
    held = bytearray(data)
    for at, part in writes:
        if part is None:
            held = held[:at] + bytes(max(0, at - len(held)))
            continue
        held.extend(bytes(max(0, at + len(part) - len(held))))
        held[at : at + len(part)] = part
    return bytes(held)


@dataclass(frozen=True)
class Call:
    name: str
    rest: str


@dataclass
class Recording:
    """What one process did to a folder, and when it said what."""

    root: Path
    """The folder as the process saw it."""
    calls: list[Call]
    result: Path


def record(log: Path, root: Path, result: Path) -> Recording:
    """The calls of an strace log made with `OPTIONS`, those that failed left out."""
    found = [
        Call(name, rest)
        for name, rest in calls(log)
        if re.search(r"= -1 E", rest) is None and not rest.endswith("= ?")
    ]
    assert found
    return Recording(root, found, result)


def _text(escaped: str) -> str:
    return bytes.fromhex(escaped.replace("\\x", "")).decode()


def _bytes(rest: str) -> bytes:
    match = _STRING.search(rest)
    assert match is not None, rest[:200]
    return bytes.fromhex(match[1].replace("\\x", ""))


class Disk:
    """The store's folder during a recording: what is certain, and what waits in the machine's memory."""

    def __init__(self, before: Path, recording: Recording) -> None:
        """`before` is a copy of the folder as it was, all of it on the disk."""
        self.recording = recording
        self.top = _load(before)
        self.said: list[bytes] = []
        """Lines of the worker's result file so far: they went out before the power did."""
        self._open: dict[int, tuple[Node, list[int]]] = {}
        self._is_result: set[int] = set()

    def run(self):
        """Replay call by call; yields after each that changed the store."""
        for number, call in enumerate(self.recording.calls):
            if self._replay(call):
                yield number

    def states(self, rng: random.Random, number: int):
        """`number` states that a power loss may leave now: dictionaries of path -> bytes, None for a folder."""
        for n in range(number):
            # the two extremes first: all of it arrived, none of it did
            luck = (1.0, 0.0)[n] if n < 2 else rng.choice((0.2, 0.5, 0.8))
            state: dict[str, bytes | None] = {}
            _settle(self.top, "", luck, rng, state)
            yield state

    # -- one call ----------------------------------------------------------------------------------

    def _find(self, path: str) -> tuple[Node, str] | None:
        """(folder, name) of a path inside the store."""
        try:
            relative = Path(path).relative_to(self.recording.root)
        except ValueError:
            return None
        folder = self.top
        for part in relative.parts[:-1]:
            folder = folder.now()[part]
        return folder, relative.name

    def _path(self, rest: str, nth: int = 0) -> str:
        path = _text(_STRING.findall(rest)[nth])
        if path.startswith("/"):
            return path
        found = list(_DESCRIPTOR.finditer(rest))[nth]
        folder = found[2]
        return f"{_text(folder) if folder.startswith(chr(92)) else folder}/{path}"

    def _replay(self, call: Call) -> bool:
        name, rest = call.name, call.rest
        if name == "openat":
            return self._opened(rest)
        descriptor = int(match[1]) if (match := re.match(r"(\d+)<", rest)) else -1
        if name == "close":
            self._open.pop(descriptor, None)
            self._is_result.discard(descriptor)
            return False
        if name == "write" and descriptor in self._is_result:
            self.said.append(_bytes(rest))
            return False
        if name in ("lseek", "write", "pwrite64", "ftruncate", "fsync", "fdatasync") or (
            name in NOT_MODELLED and descriptor in self._open
        ):
            if descriptor not in self._open:
                return False
            assert name not in NOT_MODELLED, call
            return self._on_descriptor(name, rest, *self._open[descriptor])
        return self._on_names(name, rest)

    def _opened(self, rest: str) -> bool:
        path = self._path(rest)
        descriptor = int(re.search(r"= (\d+)", rest)[1])
        if path == str(self.recording.result):
            self._is_result.add(descriptor)
            return False
        if path == str(self.recording.root):
            self._open[descriptor] = self.top, [0]
            return False
        place = self._find(path)
        if place is None:
            return False
        folder, name = place
        node = folder.now().get(name)
        made = node is None
        if node is None:
            assert "O_CREAT" in rest, rest[-200:]
            node = Node()
            folder.changes.append(((name, node),))
        elif "O_TRUNC" in rest:
            node.waiting.append((0, None))
            made = True
        assert "O_APPEND" not in rest or node.is_folder, rest[-200:]
        self._open[descriptor] = node, [0]
        return made

    def _on_descriptor(self, name: str, rest: str, node: Node, place: list[int]) -> bool:
        result = int(re.search(r"= (\d+)", rest)[1])
        if name == "lseek":
            place[0] = result
            return False
        if name in ("fsync", "fdatasync"):
            node.sync()
            return True
        if name == "ftruncate":
            node.waiting.append((int(re.search(r">, (\d+)", rest)[1]), None))
            return True
        data = _bytes(rest)[:result]
        if name == "pwrite64":
            node.waiting.append((int(re.search(r", (\d+)\) += ", rest)[1]), data))
            return True
        node.waiting.append((place[0], data))
        place[0] += result
        return True

    def _on_names(self, name: str, rest: str) -> bool:
        place = self._find(self._path(rest))
        if place is None:
            return False
        assert name not in NOT_MODELLED, (name, rest)
        folder, last = place
        if name in ("mkdir", "mkdirat"):
            folder.changes.append(((last, Node(is_folder=True)),))
        elif name in ("unlink", "unlinkat", "rmdir"):
            folder.changes.append(((last, None),))
        elif name in ("rename", "renameat", "renameat2"):
            node = folder.now()[last]
            other, new = self._find(self._path(rest, 1))
            if other is folder:
                folder.changes.append(((last, None), (new, node)))
            else:
                other.changes.append(((new, node),))
                folder.changes.append(((last, None),))
        return True


def _load(path: Path) -> Node:
    if path.is_dir():
        return Node(is_folder=True, names={each.name: _load(each) for each in path.iterdir()})
    return Node(data=path.read_bytes())


def _settle(node: Node, path: str, luck: float, rng: random.Random, state) -> None:
    """Decide what of a node reached the disk, and write it down."""
    if not node.is_folder:
        state[path] = _settled_data(node, luck, rng)
        return
    if path:
        state[path] = None
    names, stuck = dict(node.names), set()
    for together in node.changes:
        mentioned = {name for name, _ in together}
        # for one name in order: after a change that is lost, none of that name's later ones is there
        if mentioned & stuck or rng.random() >= luck:
            stuck |= mentioned
        else:
            _apply(names, together)
    for name, inner in names.items():
        _settle(inner, f"{path}/{name}".lstrip("/"), luck, rng, state)


def _settled_data(node: Node, luck: float, rng: random.Random) -> bytes:
    data = node.data
    for at, part in node.waiting:
        if part is None or luck in (0.0, 1.0):
            if rng.random() < luck:
                data = _written(data, [(at, part)])
            continue
        fate = "whole" if rng.random() < luck else rng.choice(("lost", "part", "zeros"))
        if fate == "whole":
            data = _written(data, [(at, part)])
        elif fate == "part":
            # sectors arrive in any order
            for start in range(0, len(part), SECTOR):
                if rng.random() < 0.5:
                    data = _written(data, [(at + start, part[start : start + SECTOR])])
        elif fate == "zeros" and at + len(part) > len(data):
            # the length is there and the bytes are not
            data = _written(data, [(at + len(part), None)])
    return data


def materialise(state, path: Path) -> Path:
    """Put one state into a new folder."""
    path.mkdir()
    for name, data in state.items():
        if data is None:
            (path / name).mkdir()
        else:
            (path / name).write_bytes(data)
    return path
