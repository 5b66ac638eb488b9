"""A Hub that lies on size or digest, sends bodies without end, or says nothing (R24): refused in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

import labelstore
from labelstore import MarginalSmoothing
from labelstore.errors import DamagedShard, StorageError
from labelstore.sharing import hub
from labelstore.sharing.remotes import FolderRemote
from labelstore.testing.filled_store import filled_store
from tests.exchange.hub_server import ODD_JSON, TOKEN, served
from tests.stress.conftest import ROOT

PATIENCE, MOST_BYTES = 300, 256 << 20
ANSWERS, FILES = ("/revision/", "/tree/"), ("labelstore.json", "catalogue.db", "/c.")
LIES = [
    *((lie, about) for lie in ("endless", "one byte a second", "gzip bomb", "silent") for about in (*ANSWERS, *FILES)),
    *((lie, about) for lie in ("other bytes", "longer", "shorter", "listed size") for about in FILES),
    *((lie, about) for lie in ("cut", "redirect loop", "server error", "slow header") for about in ("/tree/", "/c.")),
    *((lie, about) for lie in ODD_JSON for about in ANSWERS if (lie, about) != ("odd entries", "/revision/")),
    ("listed elsewhere", "/tree/"),
    ("endless pages", "/tree/"),
]  # fmt: skip
PUSHED = [
    (lie, about)
    for lie in ("endless", "one byte a second", "gzip bomb", "silent", "slow header", "no json", "null", "server error")
    for about in ("/repos/create", "/preupload/", "/commit/")
]  # fmt: skip
CHILD = """
import json, resource, sys, time
from huggingface_hub import HfApi
import labelstore
from labelstore.errors import LabelStoreError
from labelstore.sharing import hub, hub_requests
from labelstore.sharing.remotes import HubRemote
hub_requests.SILENT_SECONDS, hub_requests.ANSWER_SECONDS, hub_requests.LISTING_SECONDS = 1, 3, 6
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for line in sys.stdin:
    endpoint, verb, folder = json.loads(line)
    remote = HubRemote("me/labels", api=HfApi(endpoint=endpoint, token=sys.argv[1]))
    before = peak()
    try:
        if verb == "pull":
            hub.pull("me/labels", folder, remote=remote)
        else:
            with labelstore.open(folder) as store:
                hub.push(store, "me/labels", remote=remote)
        code, message = 0, ""
    except LabelStoreError as error:
        code, message = error.exit_code, str(error)
    except Exception as error:
        code, message = 1, f"{type(error).__name__}: {error}"
    print(json.dumps([code, message, peak() - before]), flush=True)
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> FolderRemote:
    folder = tmp_path_factory.mktemp("hub")
    labels = np.random.default_rng(3).dirichlet(np.full(5, 0.2), (6, 4)).astype(np.float32)
    with filled_store(
        folder / "store", labels, MarginalSmoothing(k=2), images_per_shard=3
    ) as store:
        labelstore.freeze(store)
        hub.push(store, str(folder / "remote"))
    return FolderRemote(folder / "remote")


@pytest.fixture(scope="module")
def child():
    """Pulls from an endpoint to a folder: exit code, message, bytes of memory that this took more than all before."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, TOKEN],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def call(endpoint, folder, verb="pull"):
        process.stdin.write(json.dumps([endpoint, verb, str(folder)]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield call
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def test_an_honest_hub_is_read(pushed, child, tmp_path):
    """Also by pages, and from a host for large files, which gets no token."""
    with served(pushed) as endpoint:
        assert child(endpoint, tmp_path / "pulled")[:2] == [0, ""]
    with labelstore.open(tmp_path / "pulled") as store:
        assert store.label_set().is_complete


@pytest.mark.sample(5)
@pytest.mark.parametrize(("lie", "about"), LIES)
def test_a_lying_hub_is_refused(lie, about, pushed, child, tmp_path, matrix):
    """R24: within a deadline and 256 MB, exit 6 or 3, in one line; nothing is left."""
    began = time.monotonic()
    with served(pushed, lie, about) as endpoint:
        code, message, grown = child(endpoint, tmp_path / "pulled")
    assert code in (StorageError.exit_code, DamagedShard.exit_code), message
    assert "\n" not in message
    assert time.monotonic() - began < PATIENCE
    assert grown < MOST_BYTES
    assert not list(tmp_path.iterdir())
    matrix.record("R24", cases=1, wrong=0, peak_mb=grown / 1e6)


def test_an_honest_hub_takes_what_is_pushed(pushed, child):
    with served(pushed, is_new=True) as endpoint:
        assert child(endpoint, pushed.root.parent / "store", "push")[:2] == [0, ""]


@pytest.mark.sample(6)
@pytest.mark.parametrize(("lie", "about"), PUSHED)
def test_a_lying_hub_gets_no_store(lie, about, pushed, child, matrix):
    """R24 while pushing: within a deadline and 256 MB, exit 6, in one line."""
    began = time.monotonic()
    with served(pushed, lie, about, is_new=True) as endpoint:
        code, message, grown = child(endpoint, pushed.root.parent / "store", "push")
    assert code == StorageError.exit_code, message
    assert "\n" not in message
    assert time.monotonic() - began < PATIENCE
    assert grown < MOST_BYTES
    matrix.record("R24", cases=1, wrong=0, peak_mb=grown / 1e6)
