"""R23: clocks that were wrong, jump under a worker, or go on while it sleeps: nobody waits for ever, nothing is lost."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import labelstore
from labelstore.catalogue.block_leases import LONGEST_SECONDS
from labelstore.catalogue.schema import leases
from labelstore.commit.lease_keeper import Patience
from labelstore.errors import ConflictError, LeaseLost
from labelstore.testing.filled_store import fill_block
from tests.stress.conftest import ROOT, assert_complete_and_right, make_empty, told
from tests.stress.workers import GROUP, soft_labels, write

AHEAD = {"hour": 3600.0, "day": 86_400.0, "year": 3.2e7, "ages": 1e18, "endless": math.inf}
OWNERS = {
    "another boot": "{host}/pid:[4026531836]/00000000-0000-0000-0000-000000000000/4321/99/abcdef",
    "another machine": "elsewhere/pid:[1]/boot/4321/99/abcdef",
    "no owner of ours": "\x1b[31mowner",
}
SHIFTS = ("-1d", "-1h", "+1h", "+1d")
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return make_empty(tmp_path_factory.mktemp("clocks") / "store", "zarr")


@pytest.fixture
def path(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "store"))


def lease_of(path: Path, owner: str, seconds: float, block: int = 0) -> None:
    """A block leased for so many seconds from now, whatever a keeper would be granted."""
    from labelstore.catalogue.digests import update_rows

    owner = owner.format(host=os.uname().nodename)
    with labelstore.open(path) as store:
        store.catalogue.leases.acquire(GROUP, [block], owner, 60)
        with store.catalogue.transaction() as conn:
            row = {"group_name": GROUP, "block": block, "expires": time.time() + seconds}
            update_rows(conn, leases, [row])


@pytest.mark.sample(1)
@pytest.mark.parametrize("ahead", AHEAD)
@pytest.mark.parametrize("owner", OWNERS)
def test_a_lease_of_a_wrong_clock_is_void(path, tmp_path, owner, ahead, matrix):
    """R23: the next worker takes the block at once; the list of leases says why, in plain text."""
    lease_of(path, OWNERS[owner], AHEAD[ahead])
    from labelstore.care.held_leases import held_leases

    with labelstore.open(path, readonly=True) as store:
        (held,) = held_leases(store)
        assert held.state == "void"
        assert held.process.isprintable()
    write(str(tmp_path / "told"), str(path))
    assert told(tmp_path / "told")[-1] == {"code": 0, "message": ""}
    assert_complete_and_right(path)
    matrix.record("R23", cases=1, endless=0)


@pytest.mark.sample(1)
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_clock_that_jumps_under_a_worker(path, tmp_path, shift, scale, matrix):
    """R23: set back or forward while it works, and a second worker with the right clock beside it."""
    if not FAKETIME.exists():
        pytest.skip("libfaketime is not installed")
    if scale < 1 and shift != "-1d":
        pytest.skip("make stress tries every jump")
    said, clock = tmp_path / "told", tmp_path / "clock"
    clock.write_text("+0")
    code = (
        f"from tests.stress.workers import write; write({str(said)!r}, {str(path)!r}, pause='0.4')"
    )
    environment = {
        **os.environ, "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    try:
        deadline = time.monotonic() + 600
        while not any("committed" in line for line in told(said)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        clock.write_text(shift)
        write(str(tmp_path / "second"), str(path))
        assert worker.wait(timeout=600) == 0
    finally:
        worker.kill()
        worker.wait()
    # blocks that the two held at the same time went to one of them; whoever comes next finishes the rest
    write(str(tmp_path / "third"), str(path))
    assert told(tmp_path / "third")[-1]["code"] == 0
    assert_complete_and_right(path)
    matrix.record("R23", cases=1, endless=0)


def test_an_owner_that_slept_past_its_lease_commits_nothing(path, matrix):
    """R23: also where the clock that it slept by says otherwise."""
    with labelstore.open(path) as store:
        labels = soft_labels(store.num_rows, store.num_crops)
        lease = store.catalogue.leases.acquire(GROUP, [0], "slow", 0.05)
        time.sleep(0.1)
        taken = store.catalogue.leases.acquire(GROUP, [0], "quick", 60)
        assert taken is not None
        with pytest.raises(LeaseLost):
            fill_block(store, lease, labels)
        fill_block(store, taken, labels)
    matrix.record("R23", cases=1, endless=0)


def test_a_wait_says_for_whom_and_until_when(path, caplog, matrix):
    """R23: and ends."""
    lease_of(path, OWNERS["another machine"], 300)
    with labelstore.open(path) as store:
        patience = Patience(store.catalogue, GROUP)
        patience.wait([0], seconds=0.01, most=0.005)
        with pytest.raises(ConflictError, match=r"process 4321 on elsewhere until \d\d:\d\d:\d\d"):
            patience.wait([0], seconds=0.01, most=0.005)
    assert "waiting for image block 0, leased to process 4321 on elsewhere until" in caplog.text
    matrix.record("R23", cases=1, endless=0)


def test_a_lease_can_be_broken(path, tmp_path, capsys, matrix):
    """R23: what the message tells to do: list the leases, break the one of a worker that will not come back."""
    from tests.stress.commands import run

    lease_of(path, OWNERS["another machine"], 300)
    capsys.readouterr()
    assert run("labelstore", ["leases", path]) == 0
    line = r"labels/teacher block 0  process 4321 on elsewhere  live, \d min \d+ s left\n"
    assert re.fullmatch(line, capsys.readouterr().out)
    assert run("labelstore", ["leases", path, "--break", "process 1 on nowhere"]) == 2
    assert run("labelstore", ["leases", path, "--break", "process 4321 on elsewhere"]) == 0
    capsys.readouterr()
    assert run("labelstore", ["leases", path]) == 0
    assert capsys.readouterr().out == "no leases\n"
    write(str(tmp_path / "told"), str(path))
    assert_complete_and_right(path)
    matrix.record("R23", cases=1, endless=0)


def test_leases_have_a_longest_length(path):
    with (
        labelstore.open(path) as store,
        pytest.raises(labelstore.errors.UsageError, match="at most 600"),
    ):
        store.catalogue.leases.acquire(GROUP, [0], "owner", LONGEST_SECONDS + 1)
