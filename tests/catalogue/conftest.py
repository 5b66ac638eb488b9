"""A catalogue on SQLite and on a PostgreSQL server of the tests' own, and rows to put into it."""

from __future__ import annotations

import hashlib
import uuid
from contextlib import ExitStack
from itertools import count

import pytest
from sqlalchemy import create_engine, text

from labelstore.arrays.shard_files import ShardFile
from labelstore.catalogue import Catalogue, ShardRow
from labelstore.errors import UsageError
from labelstore.testing.postgresql_server import postgresql_server

SCHEMAS = count()


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="session")
def postgresql():
    """Query part of a URL to a running server: socket folder and user."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with ExitStack() as stack:
        try:
            url = stack.enter_context(postgresql_server())
        except UsageError as reason:
            pytest.skip(str(reason))
        yield url


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
