"""Which servers the user has named: a password goes to no other.

A store from elsewhere brings `catalogue.url` along, and libpq gives `PGPASSWORD` to whatever server asks for it. So a
server counts as named where `--catalogue`, `LABELSTORE_CATALOGUE_SERVERS`, `PGHOST` or a line of the password file
that names its host says so. Others are connected to without any secret, which is enough where the server trusts
its network; one that asks for more is refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

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
    found = [url.host] if url.host else []
    found += _parts(url.query.get("host", ""))
    given = ports if len(ports) == len(found) else [port] * len(found)
    return tuple(
        _with_port(host, at or _default_port()) for host, at in zip(found, given, strict=True)
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
    """What to do where a server is the user's own."""
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
    found = []
    for line in lines:
        # HOST:PORT:DATABASE:USER:PASSWORD, in which a backslash takes the meaning from what follows
        fields = re.findall(r"((?:\\.|[^:\\])*)(?::|$)", line)
        if line.startswith("#") or len(fields) < 5 or fields[0] in ("", "*"):
            continue
        host, port = (re.sub(r"\\(.)", r"\1", field) for field in fields[:2])
        found.append(host if port == "*" else _with_port(host, port))
    return found


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
    """What stands between commas, in one text or several."""
    several = text if isinstance(text, tuple) else (text,)
    return [part.strip() for one in several for part in one.split(",") if part.strip()]
