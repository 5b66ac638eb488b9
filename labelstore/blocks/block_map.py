"""One function over many image blocks: in threads, on a pool of processes, or on a Dask cluster.

with block_map(dask="tcp://10.0.0.1:8786") as map_blocks:
    histogram(labels, map_blocks=map_blocks)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from labelstore.blocks.shipping import MapBlocks
from labelstore.errors import UsageError

MAX_WORKERS = 1024


@contextmanager
def block_map(*, workers: int | None = None, dask: str | None = None) -> Iterator[MapBlocks]:
    """How per-block work is spread: a `map` whose results come in the order of the items.

    `workers` is a number of processes of this machine: 1 is this process alone, one block after the other;
    None is this process with a few threads. `dask` is the address of a Dask scheduler, whose workers must
    see the store under the same path. Errors are raised as they were in the worker; StorageError where the
    scheduler does not answer, IncompleteError where workers die.
    """
    if dask is not None and workers is not None:
        raise UsageError(
            f"`workers={workers}` and `dask={dask}`: a cluster has its own workers, give one"
        )
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise UsageError(f"`workers={workers}`: 1 to {MAX_WORKERS}")
    if dask is not None:
        from labelstore.blocks.dask_cluster import DaskMap

        with DaskMap(dask) as cluster:
            yield cluster
    elif workers is None:
        from labelstore.blocks.threads import map_in_threads

        yield map_in_threads
    elif workers == 1:
        yield map
    else:
        from labelstore.blocks.process_pool import ProcessMap

        with ProcessMap(workers) as pool:
            yield pool
