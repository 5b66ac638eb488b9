"""PostgreSQL connections that end where a server says nothing: its own timeouts are for it to keep, or not to."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg

from labelstore.catalogue import engines


class _Connection(psycopg.Connection[Any]):
    """A connection whose every wait for the server has an end."""

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **named: Any) -> Any:  # noqa: ANN401 - as psycopg has it
        """OperationalError after `engines.SILENT_SECONDS` without a byte from the server; the connection is closed."""
        try:
            return super().wait(_until_silent(gen), *args, **named)
        except _Silent:
            # a rollback would wait as long again
            self.pgconn.finish()
            raise


class _Silent(psycopg.OperationalError):
    pass


def connect_with_deadline(*args: Any, **named: Any) -> psycopg.Connection[Any]:  # noqa: ANN401 - as psycopg has it
    """psycopg.connect, for a connection that does not wait for ever."""
    return _Connection.connect(*args, **named)


def _until_silent(gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    # psycopg asks again, with nothing ready, every tenth of a second
    heard = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            now = time.monotonic()
            if ready:
                heard = now
            elif now - heard > engines.SILENT_SECONDS:
                raise _Silent(f"the server has not answered for {engines.SILENT_SECONDS:.0f} s")
            wanted = gen.send(ready)
    except StopIteration as done:
        return done.value
