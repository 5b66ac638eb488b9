"""A catalogue on SQLite and on a PostgreSQL server of the tests' own, and rows to put into it."""

from __future__ import annotations

import getpass
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from labelstore.catalogue import Catalogue, ShardRow
from labelstore.shard_files import ShardFile

SCHEMAS = count()


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def postgresql_binaries():
    """Folder with initdb and pg_ctl, or None."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


def unprivileged_user():
    """Name of a user that is not root, since initdb refuses root; None where nobody can be."""
    if os.getuid() != 0:
        return getpass.getuser()
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


@pytest.fixture(scope="session")
def postgresql():
    """Query part of a URL to a running server: socket folder and user."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    binaries, user = postgresql_binaries(), unprivileged_user()
    if binaries is None:
        pytest.skip("no initdb and pg_ctl on this machine")
    if user is None:
        pytest.skip("initdb refuses root and there is no other user")
    # Short, since a socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    identity = {"user": user} if os.getuid() == 0 else {}
    environment = {**os.environ, "LC_ALL": "C"}

    def run(program, *arguments):
        # Output to a file: the server inherits it, and a pipe would never end.
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
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c max_connections=50"
        started = run(
            "initdb", "-D", data, "-U", "labelstore", "-A", "trust", "-E", "UTF8", "--no-sync"
        ) or run("pg_ctl", "-D", data, "-o", options, "-w", "-t", "60", "start")
        if started != 0:
            pytest.skip(f"no PostgreSQL server: {(folder / 'log').read_text().strip()[-200:]}")
        yield f"postgresql+psycopg://labelstore@/postgres?host={folder}"
        run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sqlite_path(tmp_path):
    return tmp_path / "catalogue.db"


@pytest.fixture
def sqlite_url(sqlite_path):
    return f"sqlite:///{sqlite_path}"


@pytest.fixture
def postgresql_url(postgresql):
    schema = f"store{next(SCHEMAS)}"
    engine = create_engine(postgresql)
    with engine.begin() as conn:
        conn.execute(text(f"CREATE SCHEMA {schema}"))
    engine.dispose()
    return f"{postgresql}&options=-csearch_path%3D{schema}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def catalogue(url, clock):
    with Catalogue.create(url, uuid=str(uuid.uuid4()), clock=clock) as made:
        yield made


@pytest.fixture
def shard_row():
    def make(group="labels/a", block=0, crop_shard=0, content=b"x", num_images=4):
        path = f"{group}/probability"
        file = ShardFile(
            key=f"{path}/c/{block}/{crop_shard}/0",
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            chunks={path: (1, None, 4294967295)},
        )
        return ShardRow(
            group=group,
            block=block,
            crop_shard=crop_shard,
            files=(file,),
            num_images=num_images,
            fence=0,
        )

    return make
