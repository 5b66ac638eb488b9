"""Servers that do not keep to what they were asked (R24): refused in one line, in bounded time and memory."""

from __future__ import annotations

import http.server
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import labelstore
from labelstore import MarginalSmoothing
from labelstore.arrays import object_storage
from labelstore.care.freezing import freeze
from labelstore.errors import DamagedShard, StorageError
from labelstore.testing.filled_store import filled_store
from tests.machines.conftest import everything, soft_labels

pytest.importorskip("obstore", reason="obstore is not installed")

PATIENCE = 300
"""Seconds after which a case counts as an endless wait; none comes near."""


class LyingHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder by ranges; files whose names contain `about` are served as `lie` says."""

    protocol_version = "HTTP/1.1"
    lie, about = "", "c."

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        lie = self.lie if self.about in path.name else ""
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        first, last = int(asked[0] or 0), min(int(asked[2] or len(data) - 1), len(data) - 1)
        body, whole = data[first : last + 1], len(data)
        if lie == "redirect":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if lie == "wrong range":
            first, last, body = first + 1, last + 1, data[first + 1 : last + 2]
        if lie == "wrong size":
            whole += 1
        self.send_response(200 if lie == "200 for 206" else 206)
        if lie != "no range header":
            self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
        self.send_header("Last-Modified", self.date_time_string(0))
        if lie in ("endless", "no length"):
            self.close_connection = True
        elif lie == "200 for 206":
            body = data
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            if lie == "one byte a second":
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(1)
            elif lie == "cut":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                self.connection.close()
            else:
                self.wfile.write(body)
                while lie == "endless":
                    self.wfile.write(b"\0" * (1 << 20))
        except OSError:
            self.close_connection = True


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    labels = soft_labels(shape=(13, 8, 12))
    about = {"images_per_shard": 8, "crops_per_shard": 8}
    with filled_store(folder / "work", labels, MarginalSmoothing(k=3), **about) as store:
        return freeze(store, folder / "frozen").path


@pytest.fixture
def serve(frozen, monkeypatch, tmp_path):
    """serve(lie, about) -> URL of the frozen store on a server that lies about files named so."""
    monkeypatch.setenv("LABELSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(object_storage, "REQUEST_SECONDS", 2)
    monkeypatch.setattr(object_storage, "RETRIES", 1)
    running = []

    def start(lie="", about="c."):
        handler = type("Handler", (LyingHandler,), {"lie": lie, "about": about})
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(handler, directory=str(frozen.parent))
        )
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}/frozen"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def read_all(url, frozen):
    """Every label of the store at the URL is read, and equals the folder's."""
    with labelstore.open(url) as store, labelstore.open(frozen) as local:
        for one, other in zip(
            everything(store.label_set()), everything(local.label_set()), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_an_honest_web_server_is_read(serve, frozen):
    read_all(serve(), frozen)


LIES = [
    "no length",
    "endless",
    "one byte a second",
    "wrong range",
    "wrong size",
    "200 for 206",
    "no range header",
    "redirect",
    "cut",
]


@pytest.mark.sample(5)
@pytest.mark.parametrize("about", ["labelstore.json", "catalogue.db", "c."])
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(serve, frozen, lie, about, matrix):
    """R24: within a deadline."""
    url, began = serve(lie, about), time.monotonic()
    with pytest.raises((StorageError, DamagedShard)) as error:
        read_all(url, frozen)
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < PATIENCE
    matrix.record("R24", cases=1, wrong=0)


def test_a_forked_process_is_refused(serve, monkeypatch):
    with labelstore.open(serve()) as store:
        monkeypatch.setattr(object_storage, "_process", -1)
        with pytest.raises(StorageError, match="forked process"):
            everything(store.label_set())
