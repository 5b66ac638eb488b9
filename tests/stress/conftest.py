"""Sizes of the stress tests, and processes to be killed. `make stress` runs them at a larger `--stress-scale`."""

from __future__ import annotations

import json
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labelstore import MarginalSmoothing
from labelstore.care.verification import verify
from labelstore.catalogue import Catalogue
from labelstore.catalogue.digests import insert_tuples, verified_rows
from labelstore.catalogue.schema import DIGESTED
from labelstore.store import open_store
from labelstore.testing.filled_store import filled_store
from tests.catalogue.conftest import postgresql
from tests.stress.workers import GROUP, soft_labels

__all__ = ["postgresql"]

ROOT = Path(__file__).parents[2]
NUM_IMAGES, NUM_CROPS, IMAGES_PER_SHARD = 24, 4, 4


FAILED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/stress" in item.nodeid:
            item.add_marker(pytest.mark.timeout(3600))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call":
        item.stash[FAILED] = report.failed


@pytest.fixture(scope="session")
def scale(request) -> float:
    return float(request.config.getoption("--stress-scale"))


class Matrix:
    """What one test adds to the matrix of reliability: counts, which `benchmarks.reliability` puts together."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, float]]] = []

    def record(self, row: str, **figures: float) -> None:
        """Counts under their names, of row R1 to R21; numbers of tests of one row are added up."""
        self.records.append((row, figures))


@pytest.fixture(scope="session")
def commit() -> str:
    """Of the code under test; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty=+"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


@pytest.fixture
def matrix(request, commit):
    """Takes a test's figures; `--matrix-report FILE` keeps them, and that the test failed, if it did."""
    matrix = Matrix()
    started = time.monotonic()
    yield matrix
    path = request.config.getoption("--matrix-report")
    if path is None:
        return
    said = f"{request.function.__doc__} {request.module.__doc__}"
    rows = matrix.records or [(row, {}) for row in re.findall(r"\bR\d+\b", said)[:1]]
    with Path(path).open("a") as file:
        for row, figures in rows:
            record = {
                "row": row,
                "test": request.node.nodeid.rpartition("/")[2],
                "figures": figures,
                "failed": request.node.stash.get(FAILED, True),
                "seconds": round(time.monotonic() - started, 1),
                "scale": request.config.getoption("--stress-scale"),
                "commit": commit,
            }
            file.write(json.dumps(record) + "\n")


class Nursery:
    """Forks workers; see `workers.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stress.workers"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._started: queue.Queue[int] = queue.Queue()
        self._ended: dict[int, int] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._process.stdout:
            what, pid, *status = line.split()
            if what == "started":
                self._started.put(int(pid))
                continue
            with self._changed:
                self._ended[int(pid)] = int(status[0])
                self._changed.notify_all()

    def start(self, task: str, *arguments: object) -> int:
        """Fork a worker; returns its process id."""
        line = json.dumps([task, *(str(argument) for argument in arguments)])
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._started.get(timeout=600)

    def wait(self, pid: int, timeout: float = 1200) -> int:
        """Wait until a worker has ended; its status as `os.waitpid` gives it."""
        with self._changed:
            assert self._changed.wait_for(lambda: pid in self._ended, timeout), f"{pid} hangs"
            return self._ended[pid]

    def has_ended(self, pid: int) -> bool:
        with self._changed:
            return pid in self._ended

    def kill(self, pid: int) -> None:
        """kill -9 one worker that was started here."""
        if not self.has_ended(pid):
            os.kill(pid, signal.SIGKILL)
        self.wait(pid)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(300)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


def make_empty(path: Path, backend: str, num_images: int = NUM_IMAGES) -> Path:
    """A store with a registered label set and no labels."""
    filled_store(
        path,
        soft_labels(num_images, NUM_CROPS),
        MarginalSmoothing(k=3),
        images_per_shard=IMAGES_PER_SHARD,
        crops_per_shard=2,
        backend=backend,
        blocks=[],
    ).close()
    return path


@pytest.fixture
def on_server(postgresql):
    """Moves a store's catalogue into a schema of its own on the tests' PostgreSQL server."""
    from sqlalchemy import create_engine, text

    def move(path: Path) -> Path:
        schema = f"stress{secrets.token_hex(4)}"
        engine = create_engine(postgresql)
        with engine.begin() as conn:
            conn.execute(text(f"CREATE SCHEMA {schema}"))
        engine.dispose()
        url = f"{postgresql}&options=-csearch_path%3D{schema}"
        with (
            Catalogue.open(f"sqlite:///{path / 'catalogue.db'}") as old,
            Catalogue.create(url, uuid=old.uuid) as new,
            old.reading() as reading,
            new.transaction() as writing,
        ):
            for table in DIGESTED:
                if table.name != "store":
                    insert_tuples(writing, table, verified_rows(reading, table))
        (path / "catalogue.db").unlink()
        (path / "catalogue.url").write_text(url)
        return path

    return move


@pytest.fixture(scope="session")
def empty_stores(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("empty")
    return {backend: make_empty(folder / backend, backend) for backend in ("zarr", "hdf5")}


@pytest.fixture(params=["zarr", "hdf5"])
def empty(request, empty_stores, tmp_path):
    """Makes a fresh copy of an empty store of one backend with every call."""

    def fresh() -> Path:
        path = tmp_path / "store"
        shutil.rmtree(path, ignore_errors=True)
        return Path(shutil.copytree(empty_stores[request.param], path))

    return fresh


def told(result: Path) -> list[dict]:
    """What a worker said, line by line."""
    return [json.loads(line) for line in result.read_text().splitlines()] if result.exists() else []


def acknowledged(result: Path) -> set[int]:
    return {record["committed"] for record in told(result) if "committed" in record}


def assert_nothing_lost(path: Path, acknowledged: set[int], level: str = "digests") -> set[int]:
    """Every acknowledged block is in the ledger, and every row of the ledger matches; returns these blocks."""
    report = verify(path, level, workers=1)
    assert report.is_sound, [str(problem) for problem in report.problems]
    with open_store(path, readonly=True) as store:
        committed = set(store.group(GROUP).blocks)
    assert acknowledged <= committed
    return committed


def assert_complete_and_right(path: Path) -> None:
    with open_store(path) as store:
        labels = store.label_set("teacher")
        assert labels.is_complete
        expected = soft_labels(store.num_rows, store.num_crops).argmax(-1)
        found = labels.recover(range(store.num_rows)).argmax(-1)
        assert (found == expected).all()
        store.catalogue.verify_digests()
    assert_nothing_lost(path, set(), "deep")
