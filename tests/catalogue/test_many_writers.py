"""Eight processes lease and commit as fast as they can: nothing is lost, nothing is done twice."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labelstore.catalogue import Catalogue

FORK = """
import os, sys

def run(names, work):
    # Forked from one interpreter, since starting eight takes longer than the test.
    children = []
    for name in names:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(name)
                status = 0
            finally:
                sys.stdout.flush()
                sys.excepthook(*sys.exc_info()) if status else None
                os._exit(status)
        children.append(child)
    print("pids", *children, flush=True)
    sys.exit(any([os.waitpid(child, 0)[1] not in (0, 9) for child in children]))
"""

WORKER = """
import hashlib, random, sys, time
from pathlib import Path
from labelstore.catalogue import Catalogue, ShardRow
from labelstore.errors import LeaseLost
from labelstore.arrays.shard_files import ShardFile

url, folder, names, blocks, ttl, sleep = sys.argv[1:]
folder, blocks, ttl, sleep = Path(folder), int(blocks), float(ttl), float(sleep)
catalogue = Catalogue.open(url)

def shard_row(group, block, data):
    digest = hashlib.sha256(data).hexdigest()
    file = ShardFile(key=f"{group}/{block}", size=len(data), sha256=digest, chunks={})
    return ShardRow(group=group, block=block, crop_shard=0, files=(file,), num_images=1, fence=0)

def work(name):
    rng = random.Random(name)
    while True:
        lease = catalogue.leases.acquire("labels/a", blocks, name, ttl)
        if lease is None:
            if len(catalogue.ledger.committed("labels/a")) == blocks:
                return
            time.sleep(0.02)
            continue
        block = lease.block
        content = f"{name} {block} {lease.fence}".encode()
        temporary = folder / f".{block}.{name}.tmp"
        temporary.write_bytes(content)
        if rng.random() < 0.3:
            time.sleep(rng.random() * sleep)
        rows = [
            shard_row("labels/a", block, content),
            shard_row("crops/p", block, f"crops of {block}".encode()),
        ]
        facts = [(block, 1, 2, content.ljust(16)[:16])]
        try:
            catalogue.ledger.commit(
                lease,
                rows,
                lambda: temporary.rename(folder / str(block)),
                lambda conn: catalogue.images.record_facts(conn, facts),
            )
            print(block, flush=True)
        except LeaseLost:
            temporary.unlink()

run(names.split(","), work)
"""

COUNTER = """
import sys
from labelstore.catalogue import Catalogue
catalogue = Catalogue.open(sys.argv[1])

def work(name):
    for _ in range(15):
        lease = catalogue.leases.acquire("labels/a", 1, name, 60)
        if lease is not None:
            catalogue.leases.release(lease)
            print(lease.fence, flush=True)

run(sys.argv[2].split(","), work)
"""


def start(code, *arguments):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", FORK + code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed_numbers(workers):
    out, err = workers.communicate(timeout=600)
    assert (workers.returncode, err) == (0, "")
    return [int(line) for line in out.split("\n") if line.isdigit()]


def names(count):
    return ",".join(f"w{at}" for at in range(count))


@pytest.fixture
def store(url, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()

    def make(blocks):
        with Catalogue.create(url, uuid="u") as catalogue:
            catalogue.images.add(
                [str(at) for at in range(blocks)], [0] * blocks, [1] * blocks, [1] * blocks
            )
        return folder

    return make


def check(url, folder, blocks):
    """Every block is in the ledger once, and the bytes of its file are the ones that the row names."""
    with Catalogue.open(url) as catalogue:
        catalogue.verify_digests()
        rows = catalogue.ledger.shards("labels/a")
        facts = catalogue.images.rows()
        assert [row.block for row in rows] == list(range(blocks))
        assert [row.block for row in catalogue.ledger.shards("crops/p")] == list(range(blocks))
    for row in rows:
        content = (folder / str(row.block)).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row.files[0].sha256
        assert int(content.split()[2]) == row.fence
        assert facts[row.block].digest == content.ljust(16)[:16]


@pytest.mark.slow
def test_eight_writers_lose_nothing_and_do_nothing_twice(url, store):
    blocks = 40
    folder = store(blocks)
    done = printed_numbers(start(WORKER, url, folder, names(8), blocks, 60.0, 0.0))
    assert sorted(done) == list(range(blocks))
    check(url, folder, blocks)


@pytest.mark.slow
def test_writers_that_outsleep_their_leases_or_are_killed_harm_nothing(url, store):
    blocks = 20
    folder = store(blocks)
    workers = start(WORKER, url, folder, names(5), blocks, 0.3, 0.8)
    while not (line := workers.stdout.readline()).startswith("pids"):
        assert line
    time.sleep(0.2)
    os.kill(int(line.split()[1]), signal.SIGKILL)
    printed_numbers(workers)
    check(url, folder, blocks)


@pytest.mark.sample(1)
def test_no_fencing_number_is_given_twice(url):
    Catalogue.create(url, uuid="u").close()
    fences = printed_numbers(start(COUNTER, url, names(4)))
    assert sorted(fences) == list(range(1, len(fences) + 1))
    with Catalogue.open(url) as catalogue:
        assert catalogue.leases.acquire("labels/a", 1, "last", 60).fence == len(fences) + 1
