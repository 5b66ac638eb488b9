"""Image blocks are leased, staged and committed in one place, whatever job makes them."""

from __future__ import annotations

import ast
from pathlib import Path

import labelstore
from labelstore.commit.block_jobs import BlockSource, BlockStream

ROOT = Path(labelstore.__file__).parent
LOOP = "commit/worker.py"
PARTS = {"LeaseKeeper", "Patience", "commit_blocks"}


def callers(names: set[str]) -> dict[str, set[str]]:
    """Per name the files of the package that call it."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in names
            ):
                found[node.func.id].add(path.relative_to(ROOT).as_posix())
    return found


def test_one_loop_leases_waits_and_commits():
    found = callers(PARTS)
    assert found["LeaseKeeper"] == found["Patience"] == {LOOP}
    # `write_block` commits one block whose lease its caller has
    assert found["commit_blocks"] == {LOOP, "commit/staging.py"}


def test_every_job_is_known():
    from labelstore.calibration import masking  # noqa: F401
    from labelstore.care import repairing  # noqa: F401
    from labelstore.exchange import block_import  # noqa: F401
    from labelstore.labelling import deriving, teacher_blocks  # noqa: F401
    from labelstore.sharing import copying  # noqa: F401

    jobs = {kind.__name__ for base in (BlockSource, BlockStream) for kind in base.__subclasses__()}
    assert {
        "TeacherBlocks",
        "ImportedBlocks",
        "_CopiedBlocks",
        "_DamagedBlocks",
        "_Calibrating",
        "_Deriving",
    } <= jobs
