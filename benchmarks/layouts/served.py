"""A folder over HTTP with a delay for each request, as object storage answers; requests and bytes are counted."""

from __future__ import annotations

import io
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Served:
    """A server that runs."""

    url: str
    requests: int = 0
    bytes: int = 0
    under_way: int = 0
    most_under_way: int = 0
    """Requests that waited for their answers at the same time."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, size: int) -> None:
        """Count a request and the bytes of its answer."""
        with self.lock:
            self.requests += 1
            self.bytes += size

    def begin(self, step: int) -> None:
        """One more request that waits, or one fewer."""
        with self.lock:
            self.under_way += step
            self.most_under_way = max(self.most_under_way, self.under_way)

    def reset(self) -> None:
        """Begin to count from nothing."""
        with self.lock:
            self.requests = self.bytes = self.most_under_way = 0


@contextmanager
def served(folder: Path, delay_s: float) -> Iterator[Served]:
    """Serve the files of `folder` on this machine; each answer comes `delay_s` after its request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            running.begin(1)
            time.sleep(delay_s)
            running.begin(-1)
            path = folder / unquote(self.path).lstrip("/")
            if not path.is_file():
                running.count(0)
                self.send_error(404)
                return
            total = path.stat().st_size
            first, last = 0, total - 1
            asked = self.headers.get("Range")
            if asked is not None:
                start, _, end = asked.removeprefix("bytes=").partition("-")
                first = int(start) if start else max(0, total - int(end))
                last = min(int(end), total - 1) if start and end else total - 1
            size = last - first + 1
            running.count(size if with_body else 0)
            self.send_response(200 if asked is None else 206)
            self.send_header("Content-Length", str(size))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{total}"')
            if asked is not None:
                self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            self.end_headers()
            if with_body:
                with path.open("rb") as file:
                    file.seek(first)
                    self.wfile.write(file.read(size))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Served(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()


class RangeFile(io.RawIOBase):
    """A file over HTTP for libraries that want a Python file: each read is one request for a range."""

    def __init__(self, url: str) -> None:
        self._url = url
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request) as answer:
            self._size = int(answer.headers["Content-Length"])
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        size = left if size is None or size < 0 else min(size, left)
        if size == 0:
            return b""
        asked = {"Range": f"bytes={self._at}-{self._at + size - 1}"}
        with urllib.request.urlopen(urllib.request.Request(self._url, headers=asked)) as answer:
            data: bytes = answer.read()
        self._at += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
