"""Several processes on one store: under torchrun, after a kill, and after one slept past its lease."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import labelstore
from labelstore import MarginalSmoothing
from labelstore.commit import spool
from labelstore.labelling.crop_batches import TeacherBatches
from labelstore.teachers.labeller import Labeller
from tests.flat_options import label_images
from tests.generation.conftest import write_photographs
from tests.generation.counting_teacher import SOURCE, counts

ROOT = Path(__file__).parents[2]
CODEC = MarginalSmoothing(k=2, dtype="float32")


def environment(folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    return {**os.environ, "OMP_NUM_THREADS": "1", "COUNTS": str(folder), "PYTHONPATH": str(ROOT)}


def labels_of(path: Path) -> np.ndarray:
    with labelstore.open(path) as store:
        return store.label_set().recover(range(store.num_images))


@pytest.mark.slow
def test_torchrun_shares_a_store_that_one_of_its_processes_makes(tmp_path):
    photographs = write_photographs(tmp_path / "photographs", per_class=8)
    store, images, crops = tmp_path / "s", 24, 20
    arguments = [
        *("create", str(store), "--images", str(photographs), "--teacher", SOURCE, "--json"),
        *("--num-crops", str(crops), "--k", "2", "--dtype", "float32", "--images-per-shard", "2"),
        *("--batch-size", "20", "--device", "cpu", "--name", "labels"),
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "--no-python", Path(sys.executable).with_name("labelstore"), *arguments],
        cwd=ROOT,
        env={**environment(tmp_path / "counts"), "TOGETHER": "2"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # one of the two speaks
    assert json.loads(done.stdout)["label_set"] == "labels"
    # whichever made the store: both worked, and no crop was looked at twice
    shares = counts(tmp_path / "counts")
    assert sum(shares.values()) == images * crops
    assert len(shares) == 2
    with labelstore.open(store) as opened:
        assert opened.label_set().is_complete
        assert opened.catalogue.leases.live() == []
        assert not list(tmp_path.glob(".s.*"))


KILLED = """
import os, signal, sys
from pathlib import Path
from labelstore import MarginalSmoothing
from tests.flat_options import label_images
from labelstore.commit import spool

store, photographs, synced = map(Path, sys.argv[1:4])
clock = [0.0]
spool.time = type("Clock", (), {"monotonic": staticmethod(lambda: clock[0])})
sync = spool.Spool.sync

def noted(self):
    sync(self)
    synced.write_text(f"{self.path} {self.path.stat().st_size}")

spool.Spool.sync = noted

def progress(done, total):
    clock[0] = 12.0 * done / 20  # the teacher takes 12 s for the 20 crops of an image
    if done == 5 * 20:
        os.kill(os.getpid(), signal.SIGKILL)

label_images(
    store, images=photographs, teacher=sys.argv[4], codec=MarginalSmoothing(k=2, dtype="float32"),
    num_crops=20, images_per_shard=10, batch_size=20, device="cpu", workers=1, progress=progress,
)
"""


def test_a_kill_at_half_a_shard_loses_what_was_not_synced_and_no_more(tmp_path, monkeypatch):
    photographs = write_photographs(tmp_path / "photographs", per_class=7)
    store, synced = tmp_path / "s", tmp_path / "synced"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, store, photographs, synced, SOURCE],
        cwd=ROOT,
        env=environment(tmp_path / "before"),
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    # five images were finished at t = 0, 12, 24, 36, 48 s; what was there at 36 s was synced then
    path, size = synced.read_text().split()
    power_cut = Path(shutil.copytree(store, tmp_path / "power_cut"))
    os.truncate(power_cut / Path(path).relative_to(store), int(size))
    for place, kept in ((store, 5), (power_cut, 4)):
        folder = tmp_path / f"after_{place.name}"
        folder.mkdir()
        monkeypatch.setenv("COUNTS", str(folder))
        report = label_images(
            place,
            images=photographs,
            teacher=SOURCE,
            codec=CODEC,
            num_crops=20,
            batch_size=20,
            device="cpu",
            workers=1,
        )
        assert report.num_crops == sum(counts(folder).values()) == (21 - kept) * 20
        assert 12 * (5 - kept) <= spool.SYNC_SECONDS
    np.testing.assert_array_equal(labels_of(store), labels_of(power_cut))


def test_who_slept_past_the_lease_is_refused_and_changes_nothing(tmp_path, photographs, run_folder):
    """The sleeper's labels are others, so that one of them in the store would be seen."""
    store = tmp_path / "s"
    options = {
        "images": photographs,
        "teacher": str(run_folder),
        "codec": CODEC,
        "num_crops": 8,
        "images_per_shard": 8,
        "batch_size": 16,
        "device": "cpu",
        "workers": 1,
    }
    label_images(tmp_path / "alone", **options)
    once, asleep, heirs = Labeller.__call__, [], []

    def sleeps(self, pixels):
        if not asleep:
            asleep.append(True)
            with labelstore.open(store) as other:
                # what anyone does whose clock says that the lease is over
                other.catalogue.leases.release(*other.catalogue.leases.live())
            heirs.append(label_images(store, **options))
            heirs.append(shards(store))
            asleep[0] = False
        labels = once(self, pixels)
        return labels if asleep[0] else {**labels, "probs": labels["probs"][:, ::-1].copy()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Labeller, "__call__", sleeps)
        report = label_images(store, **options)
    heir, before = heirs
    assert heir.num_crops == 21 * 8
    assert report.num_crops < 21 * 8
    assert shards(store) == before
    np.testing.assert_array_equal(labels_of(store), labels_of(tmp_path / "alone"))


def shards(path: Path) -> list[tuple[object, ...]]:
    with labelstore.open(path) as store:
        return [
            (row.group, row.block, row.crop_shard, row.fence, row.committed, row.files)
            for name in store.group_names()
            for row in store.catalogue.ledger.shards(name)
        ]


def test_no_more_is_leased_than_a_worker_can_start_on(tmp_path, photographs, run_folder):
    """Many decoding threads look far ahead; with small blocks that would take every block from the others."""
    most = []
    start = TeacherBatches._start

    def noted(self, segments):
        with labelstore.open(tmp_path / "s", readonly=True) as store:
            most.append(len(store.catalogue.leases.live()))
        return start(self, segments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherBatches, "_start", noted)
        label_images(
            tmp_path / "s",
            images=photographs,
            teacher=str(run_folder),
            codec=CODEC,
            num_crops=16,
            images_per_shard=1,
            batch_size=16,
            device="cpu",
            workers=16,
        )
    # four in batches, one decoded ahead, one being planned, three on their way to disk; 64 images ahead were all 21
    assert max(most) <= 9
