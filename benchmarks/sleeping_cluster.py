"""Many workers on one PostgreSQL that lease and commit as `create` does, with a teacher that sleeps.

Everything but the teacher is real: `work_through`, leases with their heartbeats, shards written and fsynced, the
server's own fsync. A catalogue grows while a job goes on, and what a lease costs with it, so `before` blocks are
written into it as committed first: the measured part is the end of a large job.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np

import labelstore
import labelstore.catalogue.connection as catalogue_connection
import labelstore.commit.worker as commit_worker
from labelstore import MarginalSmoothing, PlanOptions
from labelstore.arrays.shard_files import ShardFile
from labelstore.catalogue.digests import insert_rows
from labelstore.catalogue.ledger import shard_columns
from labelstore.catalogue.records import ShardRow
from labelstore.catalogue.schema import leases, shards
from labelstore.commit.block_jobs import BlockStream, LeasedBlock, MadeBlock
from labelstore.commit.lease_keeper import LeaseKeeper, Patience
from labelstore.commit.staging import BlockArrays
from labelstore.commit.worker import work_through
from labelstore.errors import ConflictError, LeaseLost
from labelstore.images import ImageFolder
from labelstore.store import Store
from labelstore.testing.filled_store import add_label_set
from labelstore.testing.postgresql_server import postgresql_server

CLASSES, K = 1000, 5
NAME = "sleeping"
GROUP = f"labels/{NAME}"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How many of what."""

    workers: int = 200
    processes: int = 2
    """That the workers are threads of."""
    blocks: int = 600
    """To be made."""
    before: int = 13_300
    """Committed already; ImageNet-21K has 13,900 blocks of 1,024 images."""
    seconds: float = 30.0
    """That the teacher sleeps per block, give or take a fifth; 0: not at all."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of it."""

    wall_seconds: float
    commits_per_s: float
    """From the first commit to the last."""
    demanded_per_s: float | None
    """Workers over seconds: what sleeping alone allows; None where none sleeps."""
    lease_ms: float
    """Median of leasing a block, with its wait for other writers."""
    commit_ms: float
    lease_cpu_ms: float
    """Median of the worker's CPU; the server's is in `server_cpu_ms`."""
    commit_cpu_ms: float
    server_cpu_ms: float
    """Per block that was made, everything that the server did."""
    beat_cpu_ms: float
    """One renewal of a lease, worker and server."""
    retries: int
    """Transactions that PostgreSQL refused as not serialisable, and that were begun again."""
    leases_lost: int
    polls: int
    """Looks of workers that had nothing left to lease."""
    twice: int
    """Blocks that two workers say they committed."""
    lost: int
    """Blocks that are not committed, or whose files do not match the ledger."""
    worker_cpu_ms: float
    """Per block that was made, everything that the workers' processes did from when their store was open."""


@dataclass(kw_only=True)
class Sleeping(BlockStream):
    """A teacher that takes its time and says the same of every image."""

    seconds: float
    seed: int

    def make(self, leased: Iterator[LeasedBlock]) -> Iterator[MadeBlock | None]:
        """One block after the other."""
        rng = np.random.default_rng(self.seed)
        for one in leased:
            time.sleep(self.seconds * rng.uniform(0.8, 1.2))
            yield MadeBlock(
                leased=one,
                shards=partial(_label, one.rows),
                num_images=len(one.rows),
                result=one.block,
            )


def _label(rows: range) -> list[BlockArrays]:
    codec = MarginalSmoothing(k=K)
    probs = np.full((len(rows), 1, CLASSES), 0.5 / (CLASSES - K), np.float32)
    probs[..., :K] = 0.5 / K
    arrays = codec.encode(labelstore.codecs.top_k(probs, codec.kept(CLASSES)), CLASSES)
    return [BlockArrays(group=GROUP, crop_shard=0, arrays=arrays)]


def new_store(path: Path, url: str, cluster: Cluster) -> None:
    """A store of one image and one crop per block, with `before` blocks in its ledger."""
    count = cluster.before + cluster.blocks
    images = ImageFolder(
        root=path,
        classes=tuple(f"class{number:04d}" for number in range(CLASSES)),
        keys=tuple(f"class0000/{number:08d}.jpg" for number in range(count)),
        class_ids=np.zeros(count, np.int64),
        sizes=np.full(count, 100_000, np.int64),
        mtimes_ns=np.zeros(count, np.int64),
    )
    with labelstore.create(
        path,
        images=images,
        plan=PlanOptions(num_crops=1, images_per_shard=1, stored_crops=False),
        catalogue=url,
    ) as store:
        add_label_set(store, MarginalSmoothing(k=K), CLASSES, name=NAME)
        # without files, which are not read
        file = ShardFile(key="k" * 60, size=1000, sha256="0" * 64, chunks={"a": (1, None, 1)})
        numbers = range(cluster.before)

        def fill(conn: Any) -> None:
            held = {"group_name": GROUP, "owner": "", "expires": 0.0, "fence": 1}
            insert_rows(conn, leases, ({**held, "block": number} for number in numbers))
            about = {
                "group": GROUP,
                "crop_shard": 0,
                "files": (file,) * 3,
                "num_images": 1,
                "fence": 1,
            }
            insert_rows(
                conn, shards, (shard_columns(ShardRow(**about, block=number)) for number in numbers)
            )

        store.catalogue.leases._database.write(fill)


def run(cluster: Cluster) -> Measured:
    """Start a server and the workers, wait for them, and look at what they left."""
    with ExitStack() as stack:
        # every worker may wait for the others' transactions with a connection, and its heartbeat with another
        url = stack.enter_context(
            postgresql_server(max_connections=2 * cluster.workers + 20, fsync=True)
        )
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "store"
        new_store(path, url, cluster)
        pool = stack.enter_context(
            ProcessPoolExecutor(cluster.processes, multiprocessing.get_context("spawn"))
        )
        each = cluster.workers // cluster.processes
        began, served = time.monotonic(), _server_seconds(url)
        parts = [
            pool.submit(_workers, path, each, cluster, number * each)
            for number in range(cluster.processes)
        ]
        found = [part.result() for part in parts]
        wall, served = time.monotonic() - began, _server_seconds(url) - served
        with labelstore.open(path) as store:
            rows = [
                row for row in store.catalogue.ledger.shards(GROUP) if row.block >= cluster.before
            ]
            sound = sum(_matches(store, row) for row in rows)
            beat_ms = _beat_ms(store, url)
        times = sorted(row.committed for row in rows)
        made = Counter(block for part in found for block in part["blocks"])
    numbers: Counter[str] = Counter()
    for part in found:
        numbers.update(part["counts"])

    def median(name: str, of: int) -> float:
        """In milliseconds; `of` 0 is wall time, 1 CPU."""
        return 1e3 * float(np.median([call[of] for part in found for call in part[name]]))

    return Measured(
        wall_seconds=wall,
        commits_per_s=(len(times) - 1) / max(times[-1] - times[0], 1e-9),
        demanded_per_s=cluster.workers / cluster.seconds if cluster.seconds else None,
        lease_ms=median("lease", 0),
        commit_ms=median("commit", 0),
        lease_cpu_ms=median("lease", 1),
        commit_cpu_ms=median("commit", 1),
        server_cpu_ms=1e3 * served / cluster.blocks,
        beat_cpu_ms=beat_ms,
        retries=numbers["retries"],
        leases_lost=numbers["lost"],
        polls=numbers["polls"],
        twice=sum(count > 1 for count in made.values()),
        lost=cluster.blocks - sound,
        worker_cpu_ms=1e3 * sum(part["cpu"] for part in found) / cluster.blocks,
    )


def _matches(store: Store, row: ShardRow) -> bool:
    return all(
        hashlib.sha256((store.arrays.root / file.key).read_bytes()).hexdigest() == file.sha256
        for file in row.files
    )


def _beat_ms(store: Store, url: str, times: int = 30) -> float:
    """CPU of one renewal, of this thread and the server."""
    lease = store.catalogue.leases.acquire(GROUP, [0], "beat", 600.0, done=2)
    assert lease is not None
    cpu, served = time.thread_time(), _server_seconds(url)
    for _ in range(times):
        lease = store.catalogue.leases.renew(lease, 600.0)
    return 1e3 * (time.thread_time() - cpu + _server_seconds(url) - served) / times


def _server_seconds(url: str) -> float:
    """CPU of the server and of the connections that it has closed; Linux."""
    folder = Path(url.partition("?host=")[2])
    number = (folder / "data" / "postmaster.pid").read_text().split()[0]
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    # of proc(5): utime, stime, cutime, cstime
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _workers(path: Path, count: int, cluster: Cluster, first: int) -> dict[str, Any]:
    """In a process: so many workers, each a thread with a lease keeper of its own."""
    counts: Counter[str] = Counter()
    times: dict[str, list[tuple[float, float]]] = {"lease": [], "commit": []}
    lock = threading.Lock()
    _timed(LeaseKeeper, "acquire_of", times["lease"])
    _timed(commit_worker, "commit_blocks", times["commit"])
    refused = catalogue_connection.is_serialization_failure

    def counted(error: ConflictError) -> bool:
        again = refused(error)
        with lock:
            counts["retries"] += again
        return again

    catalogue_connection.is_serialization_failure = counted
    commit, wait = commit_worker.commit_blocks, Patience.wait

    def committing(*given: Any, **named: Any) -> Any:
        outcomes = commit(*given, **named)
        with lock:
            counts["lost"] += sum(isinstance(outcome, LeaseLost) for outcome in outcomes)
        return outcomes

    def waiting(*given: Any, **named: Any) -> None:
        with lock:
            counts["polls"] += 1
        wait(*given, **named)

    commit_worker.commit_blocks = committing
    Patience.wait = waiting  # type: ignore[method-assign]
    with labelstore.open(path) as store:
        before = _cpu()

        def work(number: int) -> list[Any]:
            layout = store.group_specs(GROUP)[1]
            source = Sleeping(
                store=store, group=GROUP, layout=layout, blocks=range(layout.num_blocks),
                seconds=cluster.seconds, seed=number,
            )  # fmt: skip
            return work_through(source)

        with ThreadPoolExecutor(count) as pool:
            made = list(pool.map(work, range(first, first + count)))
    return {
        "blocks": [block for part in made for block in part],
        "counts": counts,
        **times,
        "cpu": _cpu() - before,
    }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _timed(owner: Any, name: str, into: list[tuple[float, float]]) -> None:
    """Replace a function by itself with a watch: wall and CPU seconds of each call."""
    function: Callable[..., Any] = getattr(owner, name)

    @wraps(function)
    def timed(*given: Any, **named: Any) -> Any:
        began, cpu = time.monotonic(), time.thread_time()
        try:
            return function(*given, **named)
        finally:
            into.append((time.monotonic() - began, time.thread_time() - cpu))

    setattr(owner, name, timed)


def load() -> float:
    """Of the machine, over the last minute."""
    return os.getloadavg()[0]


if __name__ == "__main__":
    import sys

    settings = {}
    for given in sys.argv[1:]:
        key, value = given.split("=")
        settings[key] = float(value) if key == "seconds" else int(value)
    print(asdict(run(Cluster(**settings))), f"load {load():.0f}")
