"""A Hub of one data set repository on this machine, honest or lying: its read requests, answered from a folder."""

from __future__ import annotations

import http.server
import json
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from labelstore.sharing.remotes import FolderRemote

TOKEN = "hf_of_the_test"
PAGE = 3
_ZEROS = bytes(1 << 20)


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Answers for requests whose path contains `about` are made as `lie` says."""

    protocol_version = "HTTP/1.1"
    folder: FolderRemote
    lie, about = "", ""
    is_new = False
    """Whether there is no such revision before the first commit."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = urlsplit(self.path)
        kind, _, rest = parts.path.partition("/me/labels/")
        if kind != "/cdn" and self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.answer(b"", 401, {"X-Error-Code": "RepoNotFound"})
        if kind == "/cdn" and "authorization" in self.headers:
            return self.answer(b"the token came along", 500)
        verb, _, name = rest.partition("/")
        if verb == "revision":
            commit = None if self.is_new else self.folder.resolve(name)
            if commit is None:
                return self.answer(b"", 404, {"X-Error-Code": "RevisionNotFound"})
            return self.answer(json.dumps({"sha": commit, "id": "me/labels"}).encode())
        if verb == "tree":
            return self.tree(name, int(parse_qs(parts.query).get("cursor", ["0"])[0]))
        if kind == "/datasets":
            # as the Hub does with large files: another host, which must not see the token
            port = self.server.server_port
            there = f"http://localhost:{port}/cdn/me/labels/{rest}"
            return self.answer(b"", 302, {"Location": there})
        path = self.folder.root / "commits" / name
        return self.answer(path.read_bytes()) if path.is_file() else self.answer(b"", 404)

    def do_POST(self):
        """What a push sends: a repository is made, files are announced, a commit holds them."""
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.answer(b"", 401, {"X-Error-Code": "RepoNotFound"})
        said = {"url": f"http://{self.headers['Host']}/datasets/me/labels", "name": "me/labels"}
        if "/preupload/" in self.path:
            files = json.loads(sent)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            said = {"files": modes}
        elif "/commit/" in self.path:
            type(self).is_new = False
            commit = self.folder.resolve("main")
            url = f"http://{self.headers['Host']}/datasets/me/labels/commit/{commit}"
            said = {"success": True, "commitOid": commit, "commitUrl": url}
        return self.answer(json.dumps(said).encode())

    def tree(self, commit, cursor):
        wrong = self.lie == "listed size"
        entries = [{"type": "directory", "path": "arrays.zarr", "oid": "0"}]
        entries += [
            {"type": "file", "path": path, "size": size + (wrong and self.about in path)}
            for path, size in sorted(self.folder.files(commit).items())
        ]
        last = cursor + PAGE >= len(entries)
        base = f"http://{self.headers['Host']}"
        if self.lie == "listed elsewhere":
            base = "http://elsewhere.invalid"
        if self.lie == "endless pages" and last:
            last, cursor = False, -PAGE
        url = f"{base}/api/datasets/me/labels/tree/{commit}?recursive=true&cursor={cursor + PAGE}"
        page = json.dumps(entries[max(cursor, 0) :][:PAGE]).encode()
        self.answer(page, 200, {} if last else {"Link": f'<{url}>; rel="next"'})

    def answer(self, body, status=200, headers=None):
        lie = self.lie if self.about in self.path and status == 200 else ""
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        if lie == "other bytes":
            body = bytes(byte ^ 1 for byte in body)
        elif lie == "longer":
            body += body
            headers["Content-Length"] = str(len(body))
        elif lie in ("shorter", "cut"):
            body = body[: len(body) // 2]
            if lie == "shorter":
                headers["Content-Length"] = str(len(body))
        elif lie == "endless":
            del headers["Content-Length"]
        elif lie == "gzip bomb":
            packer = zlib.compressobj(wbits=31)
            body = b"".join(packer.compress(_ZEROS) for _ in range(2000)) + packer.flush()
            headers |= {"Content-Length": str(len(body)), "Content-Encoding": "gzip"}
        elif lie == "redirect loop":
            status, body = 302, b""
            headers |= {"Location": self.path, "Content-Length": "0"}
        elif lie == "server error":
            status = 503
        elif lie in ODD_JSON:
            body = ODD_JSON[lie]
            headers["Content-Length"] = str(len(body))
        self.close_connection = lie != ""
        try:
            if lie == "silent":
                time.sleep(600)
            if lie == "slow header":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                self.slowly(_ZEROS.replace(b"\0", b"x"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if lie == "one byte a second":
                self.slowly(body)
            else:
                self.wfile.write(body)
            while lie == "endless":
                self.wfile.write(_ZEROS)
        except OSError:
            self.close_connection = True

    def slowly(self, data):
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.5)


ODD_JSON = {
    "no json": b"<html>log in to this network</html>",
    "nested": b"[" * 100_000,
    "many values": b"[" + b"[]," * 2_000_000 + b"[]]",
    "null": b"null",
    "odd entries": b'[{"type": "file", "path": 1, "size": "x"}]',
    "no commit": b'{"sha": "../../etc"}',
}
"""JSON that the Hub never sends."""


@contextmanager
def served(
    folder: FolderRemote, lie: str = "", about: str = "", *, is_new: bool = False
) -> Iterator[str]:
    """The endpoint of a Hub that has a folder's commits as those of me/labels; with `is_new` once it was pushed to."""
    named = {"folder": folder, "lie": lie, "about": about, "is_new": is_new}
    handler = type("Handler", (HubHandler,), named)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    # answers that never end must not keep the test
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
