"""Connections to a PostgreSQL server: how long it may be silent, and whether it gets a secret.

A store from elsewhere brings `catalogue.url` along, and libpq gives `PGPASSWORD` to whatever server asks for it. So a
server counts as named where `--catalogue`, `LABELSTORE_CATALOGUE_SERVERS`, `PGHOST` or a line of the password file
that names its host says so. Others are connected to without any secret, which is enough where the server trusts
its network; one that asks for more is refused.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext

from labelstore.catalogue.engines import BUSY_SECONDS, CREATE, WRITE
from labelstore.errors import RejectedInput, UsageError

CONNECT_SECONDS = 10
"""How long a PostgreSQL server has to answer."""

SILENT_SECONDS = 2 * BUSY_SECONDS
"""How long a PostgreSQL server may send nothing while it is waited for: longer than it waits for other writers."""

KEEPALIVE = {"keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3}
"""Libpq's settings by which the system notices a machine that is gone, in less than a minute."""

# what libpq says where `NO_SECRETS` keep it from answering, and a server that wants a certificate
_ASKS = re.compile(r"authentication method requirement|require_auth|client certificate")


def _refuse_old_libpq(url: URL) -> None:
    import psycopg

    if psycopg.pq.version() < SECRETS_FROM_VERSION:
        raise RejectedInput(
            f"{url.render_as_string()}: this libpq cannot keep a password from a server that only a store names: "
            f"{how_to_name(url)}"
        )


def postgresql_engine(url: URL) -> Engine:
    """The engine of a PostgreSQL database; a server that only a store names gets no secret (RejectedInput).

    UsageError where psycopg is not installed.
    """
    if os.environ.get("PGSSLMODE"):
        # how safe a connection has to be is for who connects to say, not for who made the store
        url = url.difference_update_query(["sslmode"])
    # a server that is gone is noticed in seconds; what the URL says comes first
    settings: dict[str, object] = {**KEEPALIVE}
    if "connect_timeout" not in url.query:
        settings["connect_timeout"] = CONNECT_SECONDS
    named = is_named(url)
    try:
        if not named:
            _refuse_old_libpq(url)
            settings |= NO_SECRETS
        engine = create_engine(
            url, poolclass=NullPool, isolation_level="SERIALIZABLE", connect_args=settings
        )
    except ImportError:
        raise UsageError(
            "a catalogue on PostgreSQL needs psycopg: pip install 'labelstore[postgresql]'"
        ) from None

    @event.listens_for(engine, "do_connect")
    def connect(dialect: object, record: object, args: list[Any], named: dict[str, Any]) -> object:
        return _deadline_connection().connect(*args, **named)

    @event.listens_for(engine, "handle_error")
    def asked_for_a_secret(context: ExceptionContext) -> None:
        if not named and _ASKS.search(str(context.original_exception)) is not None:
            raise RejectedInput(
                f"{url.render_as_string()}: the server asks for a password or the like, which goes to no server that "
                f"only a store names: {how_to_name(url)}"
            ) from None

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        options = conn.get_execution_options()
        if WRITE in options:
            conn.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'")
            conn.exec_driver_sql("LOCK TABLE store IN EXCLUSIVE MODE")
        elif CREATE not in options:
            # A snapshot, without the predicate locks that could make a writer fail.
            conn.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    return engine


@cache
def _deadline_connection() -> Any:  # noqa: ANN401 - a class of psycopg, which is optional
    """psycopg's connection, whose every wait for the server has an end: a server keeps its own timeouts, or not."""
    import psycopg

    class Silent(psycopg.OperationalError):
        pass

    class DeadlineConnection(psycopg.Connection[Any]):
        def wait(self, gen: Generator[Any, Any, Any], *args: Any, **named: Any) -> Any:  # noqa: ANN401
            """OperationalError after `SILENT_SECONDS` without a byte from the server; the connection is closed."""
            try:
                return super().wait(until_silent(gen), *args, **named)
            except Silent:
                # a rollback would wait as long again
                self.pgconn.finish()
                raise

    def until_silent(gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        # psycopg asks again, with nothing ready, every tenth of a second
        heard = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                now = time.monotonic()
                if ready:
                    heard = now
                elif now - heard > SILENT_SECONDS:
                    raise Silent(f"the server has not answered for {SILENT_SECONDS:.0f} s")
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value

    return DeadlineConnection


VARIABLE = "LABELSTORE_CATALOGUE_SERVERS"
"""Hosts, or HOST:PORT, with commas between them."""

DEFAULT_PORT = "5432"

NO_SECRETS = {"require_auth": "none", "gssencmode": "disable", "sslcertmode": "disable"}
"""libpq's settings for a server that the user has not named: no password, ticket or certificate is sent."""

SECRETS_FROM_VERSION = 160000
"""The version of libpq that knows them."""


def hosts_of(url: URL) -> tuple[str, ...]:
    """HOST:PORT of every server that the URL may lead to; none where libpq chooses (`PGHOST`, this machine's
    socket)."""
    ports = _parts(url.query.get("port", ""))
    port = str(url.port) if url.port is not None else (ports[0] if len(ports) == 1 else "")
    hosts = [url.host] if url.host else []
    hosts += _parts(url.query.get("host", ""))
    given = ports if len(ports) == len(hosts) else [port] * len(hosts)
    return tuple(
        _with_port(host, at or _default_port()) for host, at in zip(hosts, given, strict=True)
    )


def is_named(url: URL) -> bool:
    """Has the user named every server that the URL may lead to?"""
    return all(any(_matches(entry, host) for entry in _named()) for host in hosts_of(url))


def name_servers(url: URL) -> None:
    """The user gives this URL: its servers are named for this process, and those that it starts."""
    held = _parts(os.environ.get(VARIABLE, ""))
    new = [host for host in hosts_of(url) if host not in held]
    if new:
        os.environ[VARIABLE] = ",".join((*held, *new))


def how_to_name(url: URL) -> str:
    """Say what to do where a server is the user's own."""
    return f"if it is yours, set {VARIABLE}={','.join(hosts_of(url))}"


def _named() -> list[str]:
    return [
        *_parts(os.environ.get(VARIABLE, "")),
        *_parts(os.environ.get("PGHOST", "")),
        *_of_password_file(),
    ]


def _of_password_file() -> list[str]:
    """HOST or HOST:PORT of the lines of the password file that name a host."""
    path = Path(os.environ.get("PGPASSFILE") or "~/.pgpass").expanduser()
    try:
        lines = path.read_text(errors="replace").splitlines()
    except (OSError, RuntimeError):
        return []
    entries = []
    for line in lines:
        # HOST:PORT:DATABASE:USER:PASSWORD, in which a backslash takes the meaning from what follows
        fields = re.findall(r"((?:\\.|[^:\\])*)(?::|$)", line)
        if line.startswith("#") or len(fields) < 5 or fields[0] in ("", "*"):
            continue
        host, port = (re.sub(r"\\(.)", r"\1", field) for field in fields[:2])
        entries.append(host if port == "*" else _with_port(host, port))
    return entries


def _matches(entry: str, host: str) -> bool:
    return entry.lower() in (host.lower(), host.rpartition(":")[0].lower())


def _with_port(host: str, port: str) -> str:
    bare, colon, own = host.rpartition(":")
    # HOST:PORT already; an IPv6 address has more colons, a socket's folder is a path
    return (
        host
        if colon and own.isdigit() and ":" not in bare and "/" not in bare
        else f"{host}:{port}"
    )


def _default_port() -> str:
    return os.environ.get("PGPORT") or DEFAULT_PORT


def _parts(text: Any) -> list[str]:  # noqa: ANN401
    """Split texts at their commas."""
    several = text if isinstance(text, tuple) else (text,)
    return [part.strip() for one in several for part in one.split(",") if part.strip()]
