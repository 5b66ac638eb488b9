"""Whatever does the work (this process, a pool of two, two Dask workers), the answer and the bytes are the same."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import labelstore
from labelstore import MarginalRenorm, MarginalSmoothing, RegionQuantiles
from labelstore.analysis.comparison import compare
from labelstore.analysis.histogram import histogram
from labelstore.analysis.summary import summary
from labelstore.blocks.block_map import block_map, call, packed
from labelstore.calibration import preview
from labelstore.care.verification import verify
from labelstore.errors import ConflictError, DamagedShard, IncompleteError, StorageError, UsageError
from labelstore.labelling.deriving import derive
from labelstore.testing.filled_store import filled_store

RULE = RegionQuantiles(low=0.1, middle=0.2, top=0.9)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(45, 8, 12)) * rng.uniform(0.5, 6, (45, 1, 1))
    labels = np.exp(logits - logits.max(-1, keepdims=True))
    labels = (labels / labels.sum(-1, keepdims=True)).astype("f4")
    path = tmp_path_factory.mktemp("stores") / "original"
    codec = MarginalSmoothing(k=3, dtype="float16")
    filled_store(path, labels, codec, images_per_shard=8, crops_per_shard=8, bad={5}).close()
    return path


@pytest.fixture
def store_path(original, tmp_path):
    return shutil.copytree(original, tmp_path / "store")


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("distributed", reason="Dask's distributed is not installed")
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as local:
        yield local.scheduler_address


@pytest.fixture(scope="module", params=["pool", "dask"])
def workers(request):
    with ExitStack() as stack:
        how = (
            {"workers": 2}
            if request.param == "pool"
            else {"dask": request.getfixturevalue("cluster")}
        )
        yield stack.enter_context(block_map(**how))


def shard_digests(store):
    return {
        file.key: file.sha256
        for group in store.group_names()
        for row in store.catalogue.ledger.shards(group)
        for file in row.files
    }


def test_results_come_in_the_order_of_the_items(workers):
    assert workers.processes == 2
    assert list(workers(math.sqrt, range(101))) == [math.sqrt(n) for n in range(101)]
    assert list(workers(math.sqrt, [])) == []
    # dropped half way: what is not begun is not worked on, and the workers take the next job
    some = workers(math.sqrt, iter(range(1000)))
    assert next(some) == 0
    some.close()
    assert list(workers(math.floor, [1.5, 2.5])) == [1, 2]


@pytest.mark.sample(1)
def test_an_error_is_raised_as_it_was(workers, store_path):
    with pytest.raises(ValueError, match="math domain error"):
        list(workers(math.sqrt, [1, -1]))
    with labelstore.open(store_path) as store:
        labels = store.label_set()
        files = store.catalogue.ledger.shards("labels/teacher")[-1].files
        (path,) = (store.arrays.root / file.key for file in files if "/probability/" in file.key)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(DamagedShard) as serial:
            histogram(labels, map_blocks=map)
        with pytest.raises(DamagedShard) as spread:
            histogram(labels, map_blocks=workers)
    assert str(spread.value) == str(serial.value)
    wanted, found = verify(store_path, "deep"), verify(store_path, "deep", map_blocks=workers)
    assert [str(p) for p in found.problems] == [str(p) for p in wanted.problems]
    assert found.damaged_shards == wanted.damaged_shards != ()


def test_reading_gives_what_one_process_reads(workers, original):
    with labelstore.open(original, readonly=True) as store:
        labels = store.label_set()
        assert histogram(labels, map_blocks=workers) == histogram(labels, map_blocks=map)
        assert preview(labels, map_blocks=workers) == preview(labels, map_blocks=map)
        one, other = (summary(labels, map_blocks=way).to_record() for way in (workers, map))
        assert {k: pytest.approx(v) if isinstance(v, float) else v for k, v in other.items()} == one
    report = verify(original, "deep", map_blocks=workers)
    assert report.is_sound
    assert report.shards == verify(original, "deep").shards == 12


def write(path, way):
    """A mask and a variant; what they weigh in bytes and what they cost."""
    told: list[tuple[int, int]] = []
    with labelstore.open(path) as store:
        about = {"map_blocks": way, "progress": lambda done, total: told.append((done, total))}
        mask = labelstore.calibrate(store.label_set(), RULE, name="m", **about)
        assert told[-1] == (45 * 8, 45 * 8)
        assert told == sorted(told)
        variant = derive(store.label_set("teacher"), MarginalRenorm(k=2), name="mr", **about)
        assert mask.is_complete
        assert variant.is_complete
        assert not store.catalogue.leases.live()
        both = [store.label_set("teacher"), variant]
        (cost,) = compare(both, map_blocks=way).pairs
        return shard_digests(store), cost


@pytest.fixture(scope="module")
def written_alone(original, tmp_path_factory):
    return write(shutil.copytree(original, tmp_path_factory.mktemp("alone") / "store"), map)


def test_writing_gives_the_bytes_that_one_process_writes(workers, store_path, written_alone):
    digests, cost = write(store_path, workers)
    assert digests == written_alone[0]
    assert cost.kl == pytest.approx(written_alone[1].kl)
    assert cost.kl_p99 == written_alone[1].kl_p99
    assert verify(store_path, "deep").is_sound


def test_a_worker_that_sees_another_store_there(workers, store_path, tmp_path):
    """As on a machine where something else is mounted under the path."""
    with labelstore.open(store_path) as store:
        labels = store.label_set()
        parcel = packed(labels.max_probability)
        store_path.rename(tmp_path / "elsewhere")
        shutil.copytree(tmp_path / "elsewhere", store_path)
        assert call(parcel, 0).shape == (8, 8)  # a copy of the same store is as good
        shutil.rmtree(store_path)
        rng = np.random.default_rng(1)
        other = rng.dirichlet(np.ones(12), (45, 8)).astype("f4")
        filled_store(store_path, other, MarginalSmoothing(k=3), images_per_shard=45).close()
        with pytest.raises(ConflictError, match="is another store"):
            list(workers(labels.max_probability, [1]))


def test_a_killed_worker_is_said_in_one_line():
    with (
        block_map(workers=2) as pool,
        pytest.raises(IncompleteError, match="worker processes was killed") as raised,
    ):
        list(pool(os._exit, [3, 4, 5]))
    assert "\n" not in str(raised.value)


def test_workers_end_when_their_parent_is_killed(tmp_path):
    """kill -9 leaves no process behind that would hold on to memory, or to leases."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import time\n"
        "from labelstore.blocks.block_map import block_map\n"
        "if __name__ == '__main__':\n"
        "    with block_map(workers=2) as pool:\n"
        "        import os, multiprocessing\n"
        "        list(pool(abs, [1, 2]))\n"
        "        print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "        list(pool(time.sleep, [600, 600]))\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    with parent:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        for _ in range(6000):  # five minutes
            if not any(Path(f"/proc/{pid}").exists() and _alive(pid) for pid in children):
                break
            time.sleep(0.05)
        else:
            pytest.fail("workers outlive their parent")


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("how", "error", "why"),
    [
        ({"workers": 0}, UsageError, "1 to 1024"),
        ({"workers": -3}, UsageError, "1 to 1024"),
        ({"workers": 10**9}, UsageError, "1 to 1024"),
        ({"workers": 2, "dask": "tcp://127.0.0.1:1"}, UsageError, "give one"),
        ({"dask": ""}, UsageError, "not an address"),
        ({"dask": "here"}, UsageError, "not an address"),
        ({"dask": "ftp://127.0.0.1:80"}, UsageError, "not an address"),
        ({"dask": "tcp://127.0.0.1:99999"}, UsageError, "not an address"),
        ({"dask": "tcp://127.0.0.1:1"}, StorageError, "no scheduler answers"),
        ({"dask": "tcp://no.such.machine.invalid:8786"}, StorageError, "no scheduler answers"),
    ],
)
def test_what_cannot_be_worked_with_is_refused(how, error, why):
    pytest.importorskip("distributed", reason="Dask's distributed is not installed")
    with pytest.raises(error, match=why), block_map(**how):
        pass


def test_dask_not_installed_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(UsageError, match=r"labelstore\[dask\]"),
        block_map(dask="tcp://127.0.0.1:1"),
    ):
        pass


def test_the_commands(store_path, cluster, labelstore_command):
    def free_port():
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            return listening.getsockname()[1]

    dead = ["--dask", f"tcp://127.0.0.1:{free_port()}"]
    before = (store_path / "catalogue.db").read_bytes()
    variants = ["variants", store_path, "--compression", "mr"]
    for command in (
        ["stats", store_path],
        ["calibrate", store_path],
        variants,
        ["verify", store_path],
    ):
        code, out, err = labelstore_command(*command, *dead)
        assert (code, out) == (6, "")
        assert "no scheduler answers" in err
        assert err.count("\n") == 1
    assert (store_path / "catalogue.db").read_bytes() == before

    alive = ["--dask", cluster]
    _, serial, _ = labelstore_command("stats", store_path, "--workers", "1", "--all", "--json")
    code, out, _ = labelstore_command("stats", store_path, *alive, "--all", "--json")
    assert code == 0
    found, wanted = (json.loads(text)["label_sets"][0] for text in (out, serial))
    assert found["histogram"] == wanted["histogram"]
    assert found["profile"].keys() == wanted["profile"].keys()
    assert labelstore_command("calibrate", store_path, *alive, "--quantiles", "0.1,0.2,0.9")[0] == 0
    assert labelstore_command("calibrate", store_path, *alive, "--update")[0] == 0
    assert labelstore_command(*variants, *alive)[0] == 0
    code, out, _ = labelstore_command("verify", store_path, "--deep", *alive)
    assert code == 0
    assert out.endswith("sound\n")
