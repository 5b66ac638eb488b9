"""A store brings the URL of its server along; a password goes only to servers that the user has named."""

import socket
import struct
import threading

import pytest

import labelstore
from labelstore.catalogue.engines import parse_url
from labelstore.catalogue.postgresql import VARIABLE, hosts_of, is_named, name_servers
from labelstore.errors import RejectedInput, StorageError

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in (VARIABLE, "PGHOST", "PGPORT", "PGSSLMODE", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return monkeypatch


def url(text):
    return parse_url(text)


METHODS = {"cleartext": (3, b""), "md5": (5, b"salt"), "scram": (10, b"SCRAM-SHA-256\0\0")}


class AskingServer:
    """A server that asks for a password in one of three ways, and keeps what it is given."""

    def __init__(self, method):
        self.method, self.given = method, b""
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.settimeout(300)
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self):
        connection, _ = self.socket.accept()
        with connection:
            (size,) = struct.unpack(">I", connection.recv(4))
            connection.recv(size - 4)
            number, body = METHODS[self.method]
            connection.sendall(b"R" + struct.pack(">II", 8 + len(body), number) + body)
            self.given = connection.recv(1000)

    def close(self):
        self.thread.join(10)
        self.socket.close()


@pytest.fixture
def opened_from(tmp_path):
    pytest.importorskip("psycopg", reason="psycopg is not installed")

    def opened(server):
        path = tmp_path / "stranger.labels"
        (path / "arrays.zarr").mkdir(parents=True, exist_ok=True)
        where = f"postgresql://127.0.0.1:{server.port}/x?sslmode=disable\n"
        (path / "catalogue.url").write_text(where)
        try:
            return labelstore.open(path)
        finally:
            server.close()

    return opened


@pytest.mark.parametrize("method", METHODS)
def test_a_strangers_server_gets_no_password(opened_from, method):
    server = AskingServer(method)
    with pytest.raises(RejectedInput, match=f"{VARIABLE}=127.0.0.1:{server.port}") as raised:
        opened_from(server)
    assert server.given == b""
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("how", [VARIABLE, "PGHOST", "PGPASSFILE", "--catalogue"])
def test_a_server_that_the_user_has_named_gets_it(opened_from, environment, tmp_path, how):
    server = AskingServer("cleartext")
    if how == "PGPASSFILE":
        (tmp_path / "pgpass").write_text(f"127.0.0.1:{server.port}:*:*:unused\n")
        (tmp_path / "pgpass").chmod(0o600)
    elif how == "--catalogue":
        name_servers(url(f"postgresql://127.0.0.1:{server.port}/y"))
    else:
        environment.setenv(how, "elsewhere,127.0.0.1")
    with pytest.raises(StorageError):  # it hangs up
        opened_from(server)
    assert PASSWORD.encode() in server.given


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("postgresql://db.example/d", ("db.example:5432",)),
        ("postgresql://db.example:6000/d", ("db.example:6000",)),
        ("postgresql:///d", ()),
        ("postgresql:///d?host=/tmp/socket", ("/tmp/socket:5432",)),
        ("postgresql:///d?host=a,b&port=1,2", ("a:1", "b:2")),
        ("postgresql:///d?host=a:1&host=b:2", ("a:1", "b:2")),
        ("postgresql://good/d?host=evil", ("good:5432", "evil:5432")),
        ("postgresql://[::1]:7/d", ("::1:7",)),
    ],
)
def test_every_host_of_a_url_counts(environment, text, hosts):
    assert hosts_of(url(text)) == hosts
    assert is_named(url(text)) is (not hosts)
    for named in range(1, len(hosts) + 1):
        environment.setenv(VARIABLE, " , ".join(hosts[:named]))
        assert is_named(url(text)) is (named == len(hosts))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("db.example:5432:*:me:pw", True),
        ("DB.example:*:d:me:p\\:w", True),
        ("db.example:6000:*:me:pw", False),
        ("*:*:*:*:pw", False),
        ("#db.example:*:*:me:pw", False),
        ("db.example", False),
        ("db\\.example:*:*:me:pw", True),
        ("", False),
        ("\x00\xff:::", False),
    ],
)
def test_lines_of_the_password_file(tmp_path, line, named):
    (tmp_path / "pgpass").write_text(f"other:*:*:me:pw\n{line}\n")
    assert is_named(url("postgresql://db.example/d")) is named


def test_the_users_sslmode_is_not_weakened_by_a_store(environment, opened_from):
    environment.setenv("PGSSLMODE", "verify-full")
    environment.setenv(VARIABLE, "127.0.0.1")
    server = AskingServer("cleartext")
    with pytest.raises(StorageError):
        opened_from(server)
    assert PASSWORD.encode() not in server.given
