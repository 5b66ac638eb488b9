"""The real command, killed with SIGKILL while it works, and two of them at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import labelstore
from labelstore.errors import LabelStoreError
from tests.generation.conftest import write_photographs

ROOT = Path(__file__).parents[2]


def start(store: Path, photographs: Path, run_folder: Path) -> subprocess.Popen[str]:
    arguments = [
        *(sys.executable, "-m", "cli.labelstore_app", "create", str(store), "--json"),
        *("--images", str(photographs), "--teacher", str(run_folder), "--num-crops", "160"),
        *("--k", "2", "--images-per-shard", "4", "--batch-size", "40", "--device", "cpu"),
    ]
    return subprocess.Popen(
        arguments, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )  # fmt: skip


def committed(store: Path) -> dict[tuple[str, int], bytes]:
    """Files of every committed shard by group and block."""
    try:
        with labelstore.open(store, readonly=True) as opened:
            root = opened.arrays.root
            return {
                (row.group, row.block): b"".join((root / f.key).read_bytes() for f in row.files)
                for group in opened.group_names()
                for row in opened.catalogue.ledger.shards(group)
            }
    except LabelStoreError:
        return {}


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_committed(tmp_path: Path, run_folder: Path) -> None:
    photographs = write_photographs(tmp_path / "photographs", per_class=20)
    store = tmp_path / "s"
    process = start(store, photographs, run_folder)
    try:
        while len(committed(store)) < 4 and process.poll() is None:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = committed(store)
    if len(before) == 30:
        pytest.skip(
            "the whole store was done before the kill: this machine is too fast for 60 images"
        )
    assert before

    again = start(store, photographs, run_folder)
    out, err = again.communicate()
    assert again.returncode == 0, err
    after = committed(store)
    assert len(after) == 30
    assert {key: after[key] for key in before} == before
    labels = labelstore.open(store).label_set()
    assert labels.present.all()
    done_before = sum(key[0].startswith("labels/") for key in before)
    # the committed blocks were not labelled again; what the spool had kept was not either
    assert f'"already_committed": {4 * 160 * done_before}' in out
    whole = labels.recover(range(60))
    assert np.isfinite(whole).all()


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path: Path, run_folder: Path) -> None:
    photographs = write_photographs(tmp_path / "photographs", per_class=20)
    store = tmp_path / "s"
    workers = [start(store, photographs, run_folder) for _ in range(2)]
    outputs = [worker.communicate() for worker in workers]
    # also where both made the store in the same instant
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert len(committed(store)) == 30
    labelled = sum(int(out.split('"num_crops": ')[1].split(",")[0]) for out, _ in outputs if out)
    assert labelled == 60 * 160
