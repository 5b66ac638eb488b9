"""A run whose batches come from a process of their own learns what one with threads learns, bit for bit."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest

import trainer
from labelstore.errors import IncompleteError, UsageError
from tests.stress.test_killed_training import config, data, same_weights
from trainer.loader import CropLoader

__all__ = ["data"]  # a fixture
CHANGES = {"epochs": 4, "rand_augment": 5.0, "workers": 2}


def stop_at(step):
    def progress(done, steps):
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


@pytest.mark.slow
def test_weights_are_those_of_threads_also_when_resumed_across(data, tmp_path):
    threads = trainer.run(config(data, tmp_path / "threads", **CHANGES))
    place = tmp_path / "scratch"
    there = {**CHANGES, "loader": "process", "scratch": place}

    wanted = config(data, tmp_path / "across", **there)
    with pytest.raises(SystemExit):
        trainer.run(wanted, progress=stop_at(2))
    resumed = dataclasses.replace(wanted, resume=True, loader="threads")
    with pytest.raises(SystemExit):
        trainer.run(resumed, progress=stop_at(4))
    resumed = dataclasses.replace(resumed, loader="process")
    across = trainer.run(resumed)
    assert across.steps == threads.steps > 5
    assert same_weights(threads, across)
    assert list(place.glob("labelstore-passes-*")) == []


def test_a_killed_process_ends_the_run_with_its_last_step_saved(data, tmp_path, monkeypatch):
    made = []
    begin = CropLoader.batches
    monkeypatch.setattr(
        CropLoader, "batches", lambda self, *at: made.append(self) or begin(self, *at)
    )
    # six steps a pass, of which three are made ahead at most
    changes = {**CHANGES, "batch_size": 4, "epochs": 2}
    wanted = config(data, tmp_path / "run", **changes, loader="process")

    def kill(done, steps):
        if done == 1:
            os.kill(made[-1]._process._process.pid, signal.SIGKILL)

    notes = []
    with pytest.raises(IncompleteError, match=r"was killed \(SIGKILL\)"):
        trainer.run(wanted, progress=kill, note=notes.append)
    assert [note for note in notes if "is saved: `resume` goes on" in note]
    whole = trainer.run(config(data, None, **changes))
    again = trainer.run(dataclasses.replace(wanted, resume=True, loader="threads"))
    assert same_weights(whole, again)


def test_with_decoding_on_the_device_it_is_refused(data):
    with pytest.raises(UsageError, match="loader='process' with decode_device='device'"):
        config(data, None, loader="process", decode_device="device")
