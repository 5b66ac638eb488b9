"""A PostgreSQL server of one's own in a temporary folder, for tests and measurements; gone afterwards."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labelstore.errors import UsageError


@contextmanager
def postgresql_server(*, max_connections: int = 50, fsync: bool = False) -> Iterator[str]:
    """The URL of a server that runs as long as the block; it listens on a socket alone.

    UsageError, with the reason, where there is none to be had on this machine.
    """
    binaries, user = _binaries(), _unprivileged_user()
    if binaries is None:
        raise UsageError("no initdb and pg_ctl on this machine: install PostgreSQL")
    if user is None:
        raise UsageError("initdb refuses root, and there is no user postgres or nobody")
    # short, since a socket's path has at most 107 bytes
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    identity: dict[str, Any] = {"user": user} if os.getuid() == 0 else {}
    environment = {**os.environ, "LC_ALL": "C"}

    def run(program: str, *arguments: str | Path) -> int:
        # output to a file: the server inherits it, and a pipe would never end
        with (folder / "log").open("a") as log:
            done = subprocess.run(
                [binaries / program, *arguments],
                cwd="/", env=environment, stdout=log, stderr=subprocess.STDOUT, check=False, **identity,
            )  # fmt: skip
        return done.returncode

    try:
        if os.getuid() == 0:
            shutil.chown(folder, user)
        data = folder / "data"
        options = (
            f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync={'on' if fsync else 'off'} "
            f"-c max_connections={max_connections}"
        )
        failed = run(
            "initdb", "-D", data, "-U", "labelstore", "-A", "trust", "-E", "UTF8", "--no-sync"
        ) or run("pg_ctl", "-D", data, "-o", options, "-w", "-t", "60", "start")
        if failed:
            last = (folder / "log").read_text().strip()[-200:]
            raise UsageError(f"PostgreSQL does not start: {last}")
        try:
            yield f"postgresql+psycopg://labelstore@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    """Folder with initdb and pg_ctl."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


def _unprivileged_user() -> str | None:
    """Name of a user that is not root, since initdb refuses root."""
    if os.getuid() != 0:
        return getpass.getuser()
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)
