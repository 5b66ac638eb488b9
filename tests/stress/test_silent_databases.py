"""PostgreSQL servers that go silent (R24): an error in one line after a while, and no endless wait."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import pytest
from sqlalchemy import text

from labelstore.catalogue import postgresql
from labelstore.catalogue.connection import Database
from labelstore.errors import StorageError

pytest.importorskip("psycopg", reason="psycopg is not installed")

READY = b"R" + struct.pack(">II", 8, 0) + b"Z" + struct.pack(">I", 5) + b"I"
"""No password is needed, and a query may come."""
PATIENCE = 300


class SilentServer:
    """Takes connections; says nothing, or that it is ready and then nothing, a byte now and then, or hangs up."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                self.open.append(connection)
                if self.kind == "hangs up":
                    connection.close()
                elif self.kind == "ready":
                    (size,) = struct.unpack(">I", connection.recv(4))
                    connection.recv(size - 4)
                    connection.sendall(READY)

    def close(self) -> None:
        self.socket.close()
        for connection in self.open:
            connection.close()


@pytest.mark.parametrize("kind", ["silent", "ready", "hangs up"])
@pytest.mark.parametrize("writing", [False, True])
def test_a_server_that_says_nothing_is_left_after_a_while(kind, writing, monkeypatch, matrix):
    """R24: whether it takes the connection, says that it is ready, or hangs up."""
    monkeypatch.setattr(postgresql, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(postgresql, "CONNECT_SECONDS", 2)
    server = SilentServer(kind)
    database = Database(f"postgresql+psycopg://me@127.0.0.1:{server.port}/x?sslmode=disable")
    started = time.monotonic()
    try:
        with (
            pytest.raises(StorageError) as error,
            database.transaction() if writing else database.reading() as conn,
        ):
            conn.execute(text("SELECT 1"))
    finally:
        server.close()
    assert time.monotonic() - started < PATIENCE
    assert "\n" not in str(error.value)
    assert kind != "ready" or "has not answered for 0 s" in str(error.value)
    matrix.record("R24", cases=1, wrong=0)
