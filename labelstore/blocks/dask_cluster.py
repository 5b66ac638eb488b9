"""Workers of a Dask cluster, on any number of machines that see the store under the same path."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Self, TypeVar

from labelstore.blocks.block_map import BlockMap, call, packed
from labelstore.blocks.crop_slab import in_order
from labelstore.errors import IncompleteError, LabelStoreError, StorageError, UsageError

T = TypeVar("T")
R = TypeVar("R")

ADDRESS = re.compile(r"(?:t(?:cp|ls)://)?([\w.-]+|\[[0-9A-Fa-f:]+\]):([0-9]{1,5})")

ANSWER_SECONDS = 5.0
"""How long a scheduler has to answer."""
LOOK_SECONDS = 5.0
"""How often it is asked whether there are still workers."""
WITHOUT_WORKERS_SECONDS = 60.0
"""How long a job waits for workers that went away: a restarted one is back by then."""
AHEAD = 2
"""Items per worker thread that are under way or wait for one."""


class DaskMap(BlockMap):
    """A `map` on the workers of the scheduler at `address`; a context manager that lets go of it.

    UsageError for what is no address, and where a worker has no labelstore; StorageError where the
    scheduler does not answer, or has no workers.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = _connected(address)
        if not self._threads():
            self._client.close()
            raise StorageError(
                f"`dask={address}`: the scheduler has no workers; start some with `dask worker {address}`"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with _quiet():
            self._client.close()

    @property
    def processes(self) -> int:
        """Worker threads of the cluster at this moment."""
        return max(1, self._threads())

    def __call__(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in the order of `items`. IncompleteError where tasks kill their workers."""
        parcel = packed(function)
        running: set[Any] = set()

        def submit(item: T) -> Any:  # noqa: ANN401 - a Future of a library without types
            # not pure: equal items at different times see different stores
            future = self._client.submit(partial(call, parcel), item, pure=False)
            running.add(future)
            return future

        def result(future: Any) -> Any:  # noqa: ANN401 - whatever the function returns
            found = self._result(future)
            running.discard(future)
            return found

        try:
            yield from in_order(submit, result, items, AHEAD * self.processes)
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel(list(running))

    def _result(self, future: Any) -> Any:  # noqa: ANN401 - whatever the function returns
        from distributed import CancelledError, KilledWorker, TimeoutError
        from distributed.comm.core import CommClosedError

        seen = time.monotonic()
        while True:
            try:
                return future.result(timeout=LOOK_SECONDS)
            except TimeoutError:
                if self._client.status != "running":
                    raise self._gone() from None
                if self._threads():
                    seen = time.monotonic()
                elif time.monotonic() - seen > WITHOUT_WORKERS_SECONDS:
                    raise IncompleteError(
                        f"`dask={self.address}`: all workers went away: what was committed is kept; "
                        "run the command again when there are workers"
                    ) from None
            except LabelStoreError:
                raise
            except KilledWorker:
                raise IncompleteError(
                    f"`dask={self.address}`: workers died over the same task, perhaps for want of memory: what "
                    "was committed is kept; run the command again with more memory per worker"
                ) from None
            except ImportError as error:
                raise UsageError(
                    f"`dask={self.address}`: a worker cannot import {error.name}: install the same labelstore "
                    "on every worker"
                ) from None
            except (CancelledError, CommClosedError):
                raise self._gone() from None

    def _threads(self) -> int:
        try:
            with _quiet():
                workers = self._client.scheduler_info(n_workers=-1)["workers"]
        except OSError:
            return 0
        return sum(int(worker["nthreads"]) for worker in workers.values())

    def _gone(self) -> StorageError:
        return StorageError(
            f"`dask={self.address}`: the scheduler went away: what was committed is kept; "
            "run the command again when it is back"
        )


def _connected(address: str) -> Any:  # noqa: ANN401 - a Client of a library without types
    try:
        from distributed import Client
    except ImportError:
        raise UsageError(
            "`dask` needs Dask's distributed: pip install 'labelstore[dask]'"
        ) from None
    host, port = _host_and_port(address)
    try:
        # asked plainly first: a refused connection need not be waited for
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
        with _quiet():
            # not the default: what else runs in this process keeps its own cluster
            client: Any = Client
            return client(address, timeout=ANSWER_SECONDS, set_as_default=False)
    except OSError:
        raise StorageError(
            f"`dask={address}`: no scheduler answers within {ANSWER_SECONDS:.0f} s; start one with "
            "`dask scheduler` and give the address that it prints"
        ) from None


def _host_and_port(address: str) -> tuple[str, int]:
    """Host and port of tcp://HOST:PORT, tls://HOST:PORT or HOST:PORT; UsageError for anything else."""
    match = ADDRESS.fullmatch(address)
    port = 0 if match is None else int(match[2])
    if match is None or not 0 < port < 65536:
        raise UsageError(f"`dask={address}`: is not an address such as tcp://10.0.0.1:8786")
    return match[1].strip("[]"), port


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's log off stderr: what it has to say becomes one line."""
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
