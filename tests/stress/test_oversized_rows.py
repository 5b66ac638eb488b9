"""PostgreSQL rows that are larger than any of ours (R24): refused as damage, and not read into memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from sqlalchemy import create_engine, text

from labelstore.catalogue.schema import MAX_SENT
from labelstore.errors import DamagedShard
from tests.machines.conftest import make_store

__all__ = ["make_store"]

MOST_BYTES = 256 << 20
CELLS = {
    "image_blocks": "UPDATE {0}.image_blocks SET bad = repeat('x', {1})",
    "label_sets": "UPDATE {0}.label_sets SET codec = repeat('\u20ac', {1})",
    "shards": "UPDATE {0}.shards SET files = decode(repeat('00', {1}), 'hex') WHERE crop_shard = 0",
}
CHILD = """
import json, resource, sys
from pathlib import Path
import labelstore
from labelstore.care.verification import verify
from labelstore.errors import LabelStoreError
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
path, before = Path(sys.argv[1]), peak()
try:
    with labelstore.open(path) as store:
        store.label_set("teacher").dense(0)
    problems = [str(problem) for problem in verify(path, workers=1).problems]
    code = 3 if problems else 0
except LabelStoreError as error:
    code, problems = error.exit_code, [str(error)]
print(json.dumps([code, peak() - before, problems]))
"""


@pytest.mark.sample(1)
@pytest.mark.parametrize("table", CELLS)
def test_an_oversized_row_is_refused_in_bounded_memory(make_store, postgresql, table, matrix):
    """R24: the server is honest, the row is not."""
    with make_store("served", catalogue=postgresql) as store:
        path, schema = store.path, f"labelstore_{store.uuid}"
    engine = create_engine(postgresql)
    with engine.begin() as conn:
        conn.execute(text(CELLS[table].format(schema, 12 * MAX_SENT)))
    engine.dispose()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True
    )
    code, grown, problems = json.loads(done.stdout)
    assert code == DamagedShard.exit_code, problems
    assert any(table in problem for problem in problems), problems
    assert grown < MOST_BYTES
    matrix.record("R24", cases=1, wrong=0, peak_mb=grown / 1e6)
