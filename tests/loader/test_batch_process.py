"""Batches that a process of its own makes are those of threads, and it ends whenever its parent does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from labelstore.cropping.device_decoding import DeviceDecoding, with_torchcodec
from labelstore.errors import IncompleteError, RejectedInput, StorageError, UsageError
from labelstore.scratch import room
from labelstore.scratch.folders import ScratchFolder
from tests.loader.test_crop_loader import assert_same, damage, loader, own_data, snapshot, source
from trainer.augmentation import augmentation_of
from trainer.config import TrainConfig

__all__ = ["own_data", "source"]  # fixtures
AUGMENT = augmentation_of(
    TrainConfig(labels="ground-truth", seed=3, rand_augment=5, erasing_prob=0.5)
)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid, seconds=300.0):
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_the_process_makes_what_threads_make(source, own_data, tmp_path):
    place, options = tmp_path / "ring", {"augment": AUGMENT, "rank": 1, "world_size": 2}
    threads = loader(source, own_data, **options)
    there = loader(source, own_data, kind="process", scratch=place, **options)
    pid = there._process._process.pid
    for pass_index, start in ((0, 0), (1, 2), (2, 0)):
        wanted = snapshot(threads.batches(pass_index, start))
        assert_same(snapshot(there.batches(pass_index, start)), wanted)

    # what is left in the middle is done with, and the next pass is whole
    for _ in range(2):
        for batch in there.batches(0):
            assert batch.step == 0
            break
    batches = there.batches(0)
    held = next(batches)
    assert_same(snapshot(there.batches(1)), snapshot(threads.batches(1)))
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)
    del batches, held

    # errors are the same, and the process goes on
    order = [image for batch in threads.batches(0) for image in batch.images.tolist()]
    keys = dict(zip(source.table.images.tolist(), source.table.keys, strict=True))
    path = own_data / keys[order[-1]]
    kept = path.read_bytes()
    for how, kind in (("truncated", RejectedInput), ("folder", StorageError)):
        damage(path, how)
        raised = []
        for made in (threads, there):
            with pytest.raises(kind) as error:
                snapshot(made.batches(0))
            raised.append((type(error.value), str(error.value), error.value.exit_code))
        assert raised[0] == raised[1]
        if path.is_dir():
            path.rmdir()
        path.write_bytes(kept)
    assert_same(snapshot(there.batches(0)), snapshot(threads.batches(0)))

    assert alive(pid)
    there.close()
    assert not alive(pid)
    assert list(place.iterdir()) == []


def test_a_process_that_is_killed_is_one_line(source, data, tmp_path):
    made = loader(source, data, kind="process", scratch=tmp_path / "ring", batch_size=4)
    batches = made.batches(0)
    next(batches)
    os.kill(made._process._process.pid, signal.SIGKILL)
    with pytest.raises(IncompleteError, match=r"was killed \(SIGKILL\).*`workers`") as raised:
        list(batches)
    assert "\n" not in str(raised.value)
    with pytest.raises(IncompleteError, match="was killed"):
        next(made.batches(1))
    assert list((tmp_path / "ring").iterdir()) == []


PARENT = """
import sys, time
from pathlib import Path
import numpy as np
from labelstore.cropping.crop_plan import CropPlan
from labelstore.images import scan_folder
from trainer.loader import CropLoader, GroundTruthPasses, LoaderOptions, read_sizes
from trainer.sampler import PassSchedule

if __name__ == "__main__":
    folder, scratch = scan_folder(Path(sys.argv[1])), Path(sys.argv[2])
    source = GroundTruthPasses(
        CropPlan(seed=2), keys=folder.keys, class_ids=folder.class_ids, sizes=read_sizes(folder),
        num_classes=len(folder.classes), schedule=PassSchedule.of(passes=9, crops_per_image=2), scratch=scratch,
    )
    options = LoaderOptions(kind="process", scratch=scratch)
    made = CropLoader(source, folder, batch_size=4, input_size=24, options=options)
    next(made.batches(0))
    print(made._process._process.pid, flush=True)
    if sys.argv[3] == "wait":
        time.sleep(600)
    if sys.argv[3] == "raise":
        raise KeyError("on purpose")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "end", "raise"])
def test_a_process_ends_with_its_parent(data, tmp_path, how):
    script, scratch = tmp_path / "script.py", tmp_path / "scratch"
    script.write_text(PARENT)
    arguments = [sys.executable, script, data, scratch, "wait" if how == "kill" else how]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        if how == "kill":
            # it leaves signals that ask to stop to its parent
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
            time.sleep(0.2)
            assert alive(pid)
            parent.kill()
        assert parent.wait(300) == {"kill": -signal.SIGKILL, "end": 0, "raise": 1}[how]
        assert gone(pid)
        errors = parent.stderr.read()
        assert ("KeyError" in errors) if how == "raise" else not errors
    ScratchFolder(scratch).close()
    assert list(scratch.iterdir()) == []


def test_what_a_process_cannot_do_is_refused(source, data, tmp_path, monkeypatch):
    place = tmp_path / "ring"
    with pytest.raises(UsageError, match=r"cannot be pickled.*`loader=threads`") as raised:
        loader(source, data, kind="process", scratch=place, augment=lambda *given: None)
    assert "\n" not in str(raised.value)
    decoding = DeviceDecoding(with_torchcodec, "cpu", ["4:2:0"])
    with pytest.raises(UsageError, match="`decode_device=device`"):
        loader(source, data, kind="process", scratch=place, decoding=decoding)
    with pytest.raises(UsageError, match="choose one of threads, process"):
        loader(source, data, kind="forks")
    with pytest.raises(UsageError, match="/dev/shm"):
        loader(source, data, kind="process", scratch=Path("/dev/shm/ring"))
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(StorageError, match="batches take"):
        loader(source, data, kind="process", scratch=place)
    assert list(place.iterdir()) == []
