"""R2, R3, R5: what happens at the system calls with which a worker changes the disk."""

import random
import re
from collections import Counter

import pytest

from tests.stress.conftest import (
    acknowledged,
    assert_complete_and_right,
    assert_nothing_lost,
    told,
)
from tests.stress.strace import CHANGING, calls, needs_strace, traced

pytestmark = needs_strace

POINTS = 8
ERRORS = ("ENOSPC", "EIO", "EMFILE", "EACCES")


@pytest.fixture
def counted(empty, nursery, tmp_path):
    """How often a whole generation makes each call."""
    log = tmp_path / "log"
    assert (
        traced(nursery, "write", tmp_path / "count", empty(), log, f"-etrace={','.join(CHANGING)}")
        == 0
    )
    return Counter(name for name, _ in calls(log))


def points(counted: Counter, number: int, seed: int) -> list[tuple[str, int]]:
    """(call, how many-th) spread over all of them; every one where there are no more."""
    # at full size every one, once with each seed
    every = [(name, n) for name, count in sorted(counted.items()) for n in range(1, count + 1)]
    chosen = random.Random(seed).sample(every, min(number, len(every)))
    assert len(chosen) >= min(number, 10)
    return chosen


@pytest.mark.sample(1)
def test_killed_at_a_system_call(empty, nursery, counted, scale, matrix, tmp_path):
    """R2."""
    killed = 0
    chosen = points(counted, max(4, round(POINTS * scale)), 2)
    for number, (name, n) in enumerate(chosen):
        path, result = empty(), tmp_path / f"result{number}"
        inject = f"-einject={name}:signal=KILL:when={n}"
        status = traced(nursery, "write", result, path, tmp_path / "log", f"-etrace={name}", inject)
        assert status in (0, 9), (name, n, told(result))
        killed += status == 9
        assert_nothing_lost(path, acknowledged(result))
        if number % 5 == 0 or scale > 1:
            assert nursery.wait(nursery.start("write", result, path)) == 0
            assert told(result)[-1]["code"] == 0, told(result)
            assert_complete_and_right(path)
    # a call or two may not be made again: how often the heartbeat runs is a matter of time
    assert killed > 0.8 * len(chosen)
    matrix.record("R2", points=len(chosen), of=counted.total(), kills=killed, violations=0)


@pytest.mark.sample(1)
def test_refused_system_call(empty, nursery, counted, scale, matrix, tmp_path):
    """R3."""
    refused = injected = 0
    chosen = points(counted, max(4, round(POINTS * scale)), 3)
    for number, (name, n) in enumerate(chosen):
        path, result = empty(), tmp_path / f"result{number}"
        error = ERRORS[number % len(ERRORS)]
        where = (name, n, error)
        log = tmp_path / "log"
        inject = f"-einject={name}:error={error}:when={n}"
        status = traced(nursery, "write", result, path, log, f"-etrace={name}", inject)
        hit = [rest for call, rest in calls(log) if "INJECTED" in rest]
        ours = hit and str(path) in hit[0]
        if not ours:
            continue  # not a file of the store, or the call was not made again
        injected += 1
        assert status == 0, (*where, hit)
        last = told(result)[-1]
        committed = assert_nothing_lost(path, acknowledged(result))
        if last["code"] == 0:
            # a call that may fail: a removal, a reader's open, or SQLite's sync of its folder, which it
            # does not insist on
            assert len(committed) == 6, (*where, last, hit)
        else:
            refused += 1
            assert last["code"] == 6, (*where, last, hit)
            assert str(path) in last["message"], (*where, last, hit)
            assert "\n" not in last["message"]
        if number % 5 == 0 or scale > 1:
            assert nursery.wait(nursery.start("write", result, path)) == 0
            assert told(result)[-1]["code"] == 0, (*where, told(result))
            assert_complete_and_right(path)
    assert refused > 0.5 * len(chosen)
    matrix.record(
        "R3", points=len(chosen), of=counted.total(), injected=injected, refused=refused, silent=0
    )


def test_fsync_comes_before_rename_and_the_folder_before_the_commit(
    empty, nursery, matrix, tmp_path
):
    """R5: for every file of every commit."""
    path, log = empty(), tmp_path / "log"
    trace = "-etrace=openat,write,fsync,fdatasync,rename,unlink"
    assert traced(nursery, "write", tmp_path / "result", path, log, trace) == 0
    last_write: dict[str, int] = {}
    synced: dict[str, int] = {}
    renames: list[tuple[int, str, str]] = []
    commits: list[int] = []
    for at, (name, rest) in enumerate(calls(log)):
        file = re.match(r"\d+<([^>]*)>", rest)
        if name == "write" and file:
            last_write[file[1]] = at
        elif name in ("fsync", "fdatasync") and file and rest.endswith("= 0"):
            synced[file[1]] = at
        if name == "rename":
            old, new = re.findall(r'"([^"]*)"', rest)[:2]
            assert old in synced, f"{old} was renamed before it was synced"
            assert last_write[old] < synced[old] < at
            renames.append((at, new, new.rpartition("/")[0]))
        elif name == "unlink" and "catalogue.db-journal" in rest:
            # SQLite's commit point
            for then, final, folder in renames:
                assert synced.get(folder, -1) > then, (
                    f"{final}: committed before its folder was synced"
                )
            commits.append(len(renames))
            renames.clear()
    assert not renames
    # six blocks, each published inside one transaction: labels and boxes of two crop shards
    assert sum(count > 0 for count in commits) == 6
    matrix.record("R5", commits=6, renames=sum(commits), unordered=0)
