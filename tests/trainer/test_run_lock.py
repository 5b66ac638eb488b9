"""A run folder has one owner: a second run is refused while the first one works, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import trainer
import trainer.folder_lock as locks
from cli import errors, trainer_app
from labelstore.commit.lease_keeper import owner_name
from labelstore.errors import ConflictError, LabelStoreError
from tests.generation.conftest import OPTIONS, write_photographs
from trainer import TrainConfig
from trainer.checkpoint import RunFolder
from trainer.folder_lock import LOCK, FolderLock, take_lock

HOLDER = """
import sys, time
from pathlib import Path
from trainer.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), "a run")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(locks, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)


@pytest.fixture
def config(tmp_path):
    write_photographs(tmp_path / "images", per_class=2)
    return TrainConfig(
        labels="ground-truth", train=tmp_path / "images", model="resnet18", model_kwargs=OPTIONS, input_size=32,
        crops_per_image=2, batch_size=4, epochs=4, workers=1, device="cpu", output=tmp_path / "run",
    )  # fmt: skip


def test_another_process_is_named(holder, tmp_path):
    with pytest.raises(
        ConflictError, match=rf"by a run, process {holder.pid} on \S+: wait until it ends"
    ):
        FolderLock(tmp_path, "a run")


@pytest.mark.sample(1)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_ended_leaves_the_folder_free_at_once(holder, tmp_path, number):
    told = []
    holder.send_signal(number)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    lock = FolderLock(tmp_path, "a run", told.append)
    assert told == []
    lock.release()
    assert list(tmp_path.iterdir()) == []
    lock.release()
    FolderLock(tmp_path, "a run").release()


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_before_it_writes(config, tmp_path, resume, capsys):
    folder = RunFolder(config.output)
    folder.lock()
    given = [
        "run", "--labels", "ground-truth", "--train", config.train, "--output", config.output, "--epochs", 4,
        "--model", "resnet18", "--model-kwargs", str(OPTIONS), "--input-size", 32, "--batch-size", 4, "--device", "cpu",
        "--workers", 1, *(["--resume"] if resume else []),
    ]  # fmt: skip
    code = errors.run(trainer_app.commands, "trainer", [str(word) for word in given])
    said = capsys.readouterr().err
    assert code == 5, said
    assert f"is in use by a run, process {os.getpid()} on " in said
    assert [file.name for file in config.output.iterdir()] == [LOCK]
    folder.close()
    assert trainer.run(config).steps > 0
    assert not (config.output / LOCK).exists()


def test_a_run_that_fails_frees_its_folder(config, monkeypatch):
    def fail(*_, **__):
        raise LabelStoreError("no schedule")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.engine.LearningRate", fail)
        with pytest.raises(LabelStoreError, match="no schedule"):
            trainer.run(config)
    assert not (config.output / LOCK).exists()
    trainer.run(config)
    with pytest.raises(ConflictError, match="holds a run already"):
        trainer.run(config)
    assert not (config.output / LOCK).exists()


ELSEWHERE = "node7/pid:[1]/another-boot/4321/99/ab12cd"


def test_a_holder_on_another_machine_that_lives_is_refused(tmp_path, quick):
    """A disk whose locks do not reach other machines: nothing but the text and its time says that one is there."""
    path, told, ended = tmp_path / LOCK, [], threading.Event()
    path.write_text(ELSEWHERE)

    def beat():
        while not ended.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ConflictError, match="process 4321 on node7"):
            FolderLock(tmp_path, "a run", told.append)
    finally:
        ended.set()
        thread.join()
    assert len(told) == 1
    assert path.read_text() == ELSEWHERE


def test_a_holder_on_another_machine_that_ended_does_not_block(tmp_path, quick):
    told = []
    (tmp_path / LOCK).write_text(ELSEWHERE)
    lock = FolderLock(tmp_path, "a run", told.append)
    assert len(told) == 1
    assert "process 4321 on node7" in told[0]
    before = (tmp_path / LOCK).stat().st_mtime_ns
    until = time.monotonic() + 300
    while (tmp_path / LOCK).stat().st_mtime_ns == before and time.monotonic() < until:
        time.sleep(0.01)
    assert (tmp_path / LOCK).stat().st_mtime_ns > before
    lock.release()


def test_a_disk_without_locks_goes_by_the_text(tmp_path, quick, monkeypatch):
    def none(*_):
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    first = FolderLock(tmp_path, "a run")
    with pytest.raises(ConflictError, match=f"process {os.getpid()} on"):
        FolderLock(tmp_path, "a run")
    first.release()
    FolderLock(tmp_path, "a run").release()
    host, namespace, boot, *_ = owner_name().split("/")
    (tmp_path / LOCK).write_text(f"{host}/{namespace}/{boot}/{2**22 + 1}/1/ab12cd")
    FolderLock(tmp_path, "a run").release()


def test_a_lock_file_that_was_removed_locks_nothing(tmp_path):
    """A holder that ends removes its file: who opened it before has to take the next one."""
    first = take_lock(tmp_path / LOCK)
    assert take_lock(tmp_path / LOCK) is None
    (tmp_path / LOCK).unlink()
    second = take_lock(tmp_path / LOCK)
    assert second is not None
    assert take_lock(tmp_path / LOCK, make=False) is None
    os.close(first)
    assert take_lock(tmp_path / LOCK) is None
    os.close(second)
    assert take_lock(tmp_path / "not-there", make=False) is None
