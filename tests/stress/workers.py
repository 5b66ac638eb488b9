"""What the stress tests' processes do; they import labelstore only. Run as a program, it is the nursery.

The nursery imports everything once and forks a child per line on stdin, `TASK RESULT ARGUMENT...`, so that
a kill costs milliseconds and not an interpreter's start. It answers `started PID`; when the child is gone,
`ended PID STATUS`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import labelstore
from cli.errors import outcome
from labelstore import MarginalSmoothing
from labelstore.care.dropping import drop
from labelstore.care.verification import verify
from labelstore.commit.lease_keeper import LeaseKeeper
from labelstore.errors import DamagedShard, NotGenerated
from labelstore.testing.filled_store import add_label_set, fill_block, fill_blocks, filled_store

GROUP = "labels/teacher"
SECOND = "labels/second"
NUM_CLASSES = 10


def soft_labels(num_images: int, num_crops: int) -> np.ndarray:
    """The labels that every worker gives: equal in all processes."""
    rng = np.random.default_rng(11)
    shape = (num_images, num_crops)
    return rng.dirichlet(np.full(NUM_CLASSES, 0.1), shape).astype(np.float32)


def labels_of(store) -> np.ndarray:
    return soft_labels(store.num_rows, store.num_crops)


def say(result: str, **record: object) -> None:
    """Append one line; what is written stays when the process is killed."""
    with Path(result).open("a") as file:
        file.write(json.dumps(record) + "\n")


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.002)


def write(result: str, path: str, go: str = "", pause: str = "0") -> None:
    """Commit blocks until all are; says each block after its commit, and how it ended."""
    if go:
        say(result, ready=os.getpid())
        wait_for(go)
    try:
        with labelstore.open(path) as store:
            labels = labels_of(store)
            layout = store.group_specs(GROUP)[1]
            keeper = LeaseKeeper(store.catalogue, GROUP, layout.num_blocks, layout.num_crop_shards)
            while (lease := keeper.acquire()) is not None:
                fill_block(store, lease, labels)
                say(result, committed=lease.block)
                keeper.forget(lease.block)
                time.sleep(float(pause))
            keeper.close()
        say(result, code=0, message="")
    except Exception as error:  # noqa: BLE001 - as the program reports it
        code, message = outcome(error)
        say(result, code=code, message=message)


def alter(result: str, path: str, go: str = "") -> None:
    """Everything that changes a store beside filling it: a further label set, two blocks of each, dropping it."""
    if go:
        say(result, ready=os.getpid())
        wait_for(go)
    try:
        with labelstore.open(path) as store:
            labels = labels_of(store)
            fill_blocks(store, labels, name="teacher", blocks=[0])
            say(result, committed=0)
            add_label_set(store, MarginalSmoothing(k=2), NUM_CLASSES, name="second")
            for block in (0, 3):
                fill_blocks(store, labels, name="second", blocks=[block])
                say(result, second=block)
            say(result, dropping="second")
            drop(store, "label-set", "second")
            say(result, dropped="second")
            fill_blocks(store, labels, name="teacher", blocks=[3])
            say(result, committed=3)
        say(result, code=0, message="")
    except Exception as error:  # noqa: BLE001 - as the program reports it
        code, message = outcome(error)
        say(result, code=code, message=message)


def read(result: str, path: str, wanted: str, seed: str) -> None:
    """Read random blocks until `wanted` were there; says how many were read, not there yet, and wrong."""
    rng = np.random.default_rng(int(seed))
    counts = {"read": 0, "not_yet": 0, "wrong": 0}
    try:
        expected: np.ndarray | None = None
        while counts["read"] + counts["wrong"] < int(wanted):
            with labelstore.open(path) as store:
                if expected is None:
                    expected = labels_of(store).argmax(-1)
                labels = store.label_set("teacher")
                for _ in range(5):
                    block = int(rng.integers(labels.layout.num_blocks))
                    rows = labels.block_rows(block)
                    try:
                        found = labels.dense(block)
                    except NotGenerated:
                        counts["not_yet"] += 1
                        continue
                    same = (found.argmax(-1) == expected[rows.start : rows.stop]).all()
                    counts["read" if same else "wrong"] += 1
        say(result, code=0, message="", **counts)
    except Exception as error:  # noqa: BLE001
        code, message = outcome(error)
        say(result, code=code, message=message, **counts)


def check(result: str, path: str) -> None:
    """`verify --deep`, in a process of its own."""
    report = verify(path, "deep", workers=1)
    say(result, problems=[str(problem) for problem in report.problems])


def use(result: str, path: str) -> None:
    """Everything that one does with a store from elsewhere, within 1 GiB more and 10 s; says how each went."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30),) * 2)
    expected = soft_labels(24, 4).argmax(-1)

    def opened() -> bool:
        labelstore.open(path, readonly=True).close()
        return True

    def images() -> bool:
        with labelstore.open(path, readonly=True) as store:
            return len(store.image_columns["key"]) == 24 and store.class_names is not None

    def read_all() -> bool:
        with labelstore.open(path, readonly=True) as store:
            found = store.label_set().recover(range(24))
            return bool((found.argmax(-1) == expected).all())

    def verified() -> bool:
        report = verify(path, "deep", workers=1)
        if not report.is_sound:
            raise DamagedShard(str(report.problems[0]))
        return True

    def frozen() -> bool:
        with labelstore.open(path, readonly=True) as store:
            labelstore.freeze(store, f"{result}.frozen")
        return True

    def written() -> bool:
        with labelstore.open(path) as store:
            store.write_metadata()
            labelstore.gc(store, min_age_seconds=0)
        return True

    for name, action in {
        "open": opened,
        "images": images,
        "read": read_all,
        "verify": verified,
        "freeze": frozen,
        "write": written,
    }.items():
        code, message, right = 0, "", True
        # 10 s each, as a command of its own would have
        spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + 10, resource.RLIM_INFINITY))
        try:
            right = action()
        except BaseException as error:  # noqa: BLE001 - as the program reports it
            code, message = outcome(error)
        say(result, action=name, code=code, message=message, right=right)


TASKS = {"use": use, "write": write, "alter": alter, "read": read, "check": check}


def warm_up() -> None:
    """Import what is imported late, so that a child's system calls are on store files only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        filled_store(path, soft_labels(4, 2), MarginalSmoothing(k=3), blocks=[]).close()
        write(str(Path(folder) / "result"), str(path))
        read(str(Path(folder) / "result"), str(path), "0.01", "0")
        check(str(Path(folder) / "result"), str(path))
        with labelstore.open(path) as store:
            labelstore.freeze(store, Path(folder) / "frozen", allow_incomplete=True)
            labelstore.gc(store)


def nursery() -> None:
    warm_up()
    lock = threading.Lock()

    def answer(*words: object) -> None:
        with lock:
            print(*words, flush=True)

    for line in sys.stdin:
        task, *arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                TASKS[task](*arguments)
                code = 0
            finally:
                os._exit(code)
        answer("started", pid)
        # one thread per child: it is reaped when it ends, whatever the others do
        threading.Thread(
            target=lambda pid=pid: answer("ended", pid, os.waitpid(pid, 0)[1]), daemon=True
        ).start()


if __name__ == "__main__":
    nursery()
