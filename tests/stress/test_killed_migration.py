"""R15: `labelstore migrate` killed anywhere leaves the old store or the new one, and the same command finishes."""

import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

import labelstore
from labelstore.arrays import durable
from labelstore.care.migration import migrate
from labelstore.care.verification import verify
from tests.data.make_stores import BACKENDS, DATA, answers
from tests.stress.test_old_formats import as_checked_out

KILLS = 4
"""Per unit of `--stress-scale`; half of them at a statement or file operation, half at any moment."""
POINTS = "points"


@pytest.fixture
def older(tmp_path):
    """Kept stores of format 1, no longer frozen."""
    paths = []
    for backend in BACKENDS:
        path = as_checked_out(DATA / f"v1-{backend}-ms", tmp_path / backend)
        (path / "labelstore.json").unlink()
        paths.append(path)
    return paths


def counting(left: list[int], function):
    def counted(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return counted


def migrate_in_child(path, *, at: int | None = None, after: float | None = None) -> bool:
    """Migrate in a child that dies at the n-th statement, commit or file operation, or after so many seconds.

    Whether it died. Given neither, it writes how many points it passed into the file POINTS beside the store.
    """
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        left = [10**9 if at is None else at]
        if after is None:
            for name in ("before_cursor_execute", "commit"):
                event.listen(Engine, name, counting(left, lambda *_: None))
            for name in ("write", "fsync", "replace", "link", "rename"):
                setattr(durable.os, name, counting(left, getattr(durable.os, name)))
        if after is not None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process like kill does
            signal.setitimer(signal.ITIMER_REAL, max(after, 1e-6))
        migrate(path)
        if at is None:
            path.with_name(POINTS).write_text(str(10**9 - left[0]))
    except BaseException:  # noqa: BLE001 - a child must not come back into the test
        os._exit(1)
    os._exit(0)


def revision_of(path):
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        ((revision,),) = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    return revision


def read(path):
    with labelstore.open(path, readonly=True) as store:
        return answers(store)


def test_killed_anywhere_in_migrate(older, tmp_path, scale, matrix):
    copy = tmp_path / "copy"

    def fresh(original):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
        return copy

    expected = read(older[0])
    assert not migrate_in_child(fresh(older[0]))
    points = int((tmp_path / POINTS).read_text())
    assert points > 50
    started = time.monotonic()
    assert not migrate_in_child(fresh(older[0]), after=60)
    seconds = time.monotonic() - started
    rng = random.Random(15)
    kills = max(2, round(KILLS * scale))
    ways = [{"at": points * number // kills} for number in range(kills // 2)]
    ways += [{"after": rng.uniform(0, seconds)} for _ in range(kills - len(ways))]
    killed, left_as = 0, set()
    for number, way in enumerate(ways):
        killed += migrate_in_child(fresh(older[number % 2]), **way)
        before = revision_of(copy)
        left_as.add(before)
        assert before in ("0001", "0002"), way
        found = read(copy)
        assert found.keys() == expected.keys()
        expected["format_version"] = np.array(int(before))
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=str((way, name)))
        assert migrate(copy).revisions == (("0002",) if before == "0001" else ()), way
        assert migrate(copy).revisions == ()
        report = verify(copy, "deep", workers=1)
        assert report.is_sound, (way, [str(problem) for problem in report.problems])
        with labelstore.open(copy) as store:
            assert not store.catalogue.readonly
            store.catalogue.verify_digests()
    assert killed
    assert "0001" in left_as
    matrix.record("R15", migrate_kills=killed, wrong=0)
