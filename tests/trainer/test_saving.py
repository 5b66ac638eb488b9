"""What is saved when: no wrong validation image, broken file, full disk or kill costs more than minutes of training."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

import trainer
import trainer.between_steps
from labelstore.errors import LabelStoreError, RejectedInput, StorageError, UsageError
from tests.generation.conftest import OPTIONS
from tests.trainer.small_runs import small_run, write_data
from trainer import TrainConfig
from trainer.between_steps import BetweenSteps
from trainer.checkpoint import RunFolder, read_checkpoint
from trainer.loader import crop_pixels
from trainer.ranks import Ranks
from trainer.run_outputs import TensorBoardLogger
from trainer.stopping import StopRequest

STEPS = 3
"""Of a pass: 12 images, two crops of each, 8 crops in a step."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), 4, 1)


@pytest.fixture(autouse=True)
def event_files_in_order(monkeypatch):
    """Files of one process and second are read in the order of their numbers as text, in which 10 is before 9."""
    numbers = event_file_writer.AtomicCounter(0)
    monkeypatch.setattr(event_file_writer, "_global_uid", numbers)


@pytest.fixture
def data(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / "data")


def config(data, output, **changes):
    return small_run(
        changes, data=data, labels="ground-truth", model_kwargs={**OPTIONS, "drop_rate": 0.2}, mixing="selfmix",
        epochs=6, ema_decay=0.5, loggers=("tensorboard",), output=output,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """A run that nothing happened to."""
    wanted = config(pictures, tmp_path_factory.mktemp("whole") / "run")
    return trainer.run(wanted)


def figures(folder):
    """Everything that a run says of its passes, but for the seconds: rows, classes, what TensorBoard reads."""
    rows = [line.rsplit(",", 1)[0] for line in (folder / "summary.csv").read_text().splitlines()]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    scalars = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
        if name != "seconds"
    }
    return rows, (folder / "classes.csv").read_text(), scalars


def assert_same(run, whole):
    one, two = run.config.output, whole.config.output
    assert figures(one) == figures(two)
    assert (run.train_loss, run.top1, run.best_ema_top1) == (
        whole.train_loss, whole.top1, whole.best_ema_top1,
    )  # fmt: skip
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name]), name
    for name in ("model.safetensors", "model_ema.safetensors"):
        first, second = load_file(one / name), load_file(two / name)
        assert all(torch.equal(first[key], second[key]) for key in {*first, *second}), name


def one_image(folder):
    return next(path for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.slow
def test_a_logger_that_fails_leaves_no_line_out(pictures, whole, tmp_path, monkeypatch):
    wanted = config(pictures, tmp_path / "run")

    def refuse(self, row):
        raise StorageError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(TensorBoardLogger, "add", refuse)
        with pytest.raises(StorageError, match="the disk is full"):
            trainer.run(wanted)
    assert_same(trainer.run(dataclasses.replace(wanted, resume=True)), whole)


def test_images_that_nothing_can_be_evaluated_on_are_refused_before_training(data, tmp_path):
    wanted = config(data, tmp_path / "run")
    image = one_image(data / "val")
    good = image.read_bytes()
    image.write_bytes(b"no image at all")
    with pytest.raises(RejectedInput, match=image.name) as caught:
        trainer.run(wanted)
    assert "\n" not in str(caught.value)
    image.write_bytes(good)
    (data / "val" / "zz").mkdir()
    shutil.copy(image, data / "val" / "zz")
    with pytest.raises(RejectedInput, match="has a class 'zz'"):
        trainer.run(wanted)
    assert not wanted.output.exists()


def test_a_broken_validation_image_costs_an_evaluation_and_no_pass(data, whole, tmp_path):
    wanted = config(data, tmp_path / "run")
    image = one_image(data / "val")
    good, notes = image.read_bytes(), []
    # its header says nothing of what is missing
    image.write_bytes(good[: len(good) * 2 // 3])
    with pytest.raises(RejectedInput, match=image.name) as caught:
        trainer.run(wanted, note=notes.append)
    assert "\n" not in str(caught.value)
    assert notes[-1] == "epoch 2 is saved, but not evaluated: `resume` makes up for it"
    saved = read_checkpoint(wanted.output / "last.pth.tar")
    assert (saved.step, saved.epoch, saved.is_whole_pass) == (STEPS, 2, False)
    steps = []
    with pytest.raises(RejectedInput, match=image.name):
        trainer.run(
            dataclasses.replace(wanted, resume=True),
            progress=lambda step, all_steps: steps.append(step),
        )
    assert steps == []
    image.write_bytes(good)
    assert_same(trainer.run(dataclasses.replace(wanted, resume=True)), whole)


@pytest.mark.sample(1)
@pytest.mark.parametrize("pass_index", [0, 2])
def test_a_stop_before_the_last_line_of_a_pass_leaves_none_out_and_none_twice(
    pictures, whole, tmp_path, monkeypatch, pass_index
):
    """The row is in every file already, only the checkpoint that says so is missing."""
    wanted = config(pictures, tmp_path / "run")
    save = RunFolder.save

    def refuse(self, checkpoint, **more):
        if checkpoint.is_whole_pass and checkpoint.step == STEPS * (pass_index + 1):
            raise StorageError("the disk is full")
        save(self, checkpoint, **more)

    with monkeypatch.context() as full:
        full.setattr(RunFolder, "save", refuse)
        with pytest.raises(StorageError, match="the disk is full"):
            trainer.run(wanted)
    assert_same(trainer.run(dataclasses.replace(wanted, resume=True)), whole)


@pytest.mark.sample(1)
@pytest.mark.parametrize("images", [1, 9, 21])
def test_a_disk_that_refuses_an_image_costs_no_step(pictures, whole, tmp_path, monkeypatch, images):
    """4 images are a step, 12 a pass."""
    wanted = config(pictures, tmp_path / "run")
    steps, notes, left = [0], [], images
    read = crop_pixels.load_image

    def refuse(*given):
        nonlocal left
        left -= 1
        if not left:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(*given)

    with monkeypatch.context() as disk:
        disk.setattr(crop_pixels, "load_image", refuse)
        with pytest.raises(StorageError, match="Stale file handle"):
            trainer.run(wanted, progress=lambda step, _: steps.append(step), note=notes.append)
    assert steps[-1] == (images - 1) // 4
    last = wanted.output / "last.pth.tar"
    if images == 1:
        assert not last.exists()
    else:
        assert read_checkpoint(last).step == steps[-1]
        assert notes[-1] == f"step {steps[-1]} is saved: `resume` goes on from there"
    if images > 12:
        # that of the pass's end stays
        assert read_checkpoint(last.with_name("previous.pth.tar")).is_whole_pass
    assert_same(trainer.run(dataclasses.replace(wanted, resume=True)), whole)


def test_a_loss_that_is_not_finite_is_not_saved(pictures, tmp_path):
    wanted = config(
        pictures, tmp_path / "run", lr=1e12, epochs=40, checkpoint_minutes=0, loggers=()
    )
    with pytest.raises(LabelStoreError, match="at step"):
        trainer.run(wanted)
    last = wanted.output / "last.pth.tar"
    assert not last.exists() or read_checkpoint(last).step % STEPS == 0


class Clock:
    """A minute later every time it is looked at."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        self.seconds += 60
        return self.seconds


@pytest.mark.sample(1)
@pytest.mark.parametrize(("minutes", "dies_at"), [(1.0, 2), (1.0, 5), (0.0, 5)])
def test_checkpoints_inside_a_pass(pictures, whole, tmp_path, monkeypatch, minutes, dies_at):
    monkeypatch.setattr(trainer.between_steps.time, "monotonic", Clock())
    monkeypatch.setattr(trainer.between_steps, "SAVING_TAKES", 1e9)
    wanted = config(pictures, tmp_path / "run", checkpoint_minutes=minutes)
    found = []

    class Killed(BaseException):
        pass

    def look(step, steps):
        there = (wanted.output / f"{name}.pth.tar" for name in ("last", "previous"))
        found.append([read_checkpoint(path).step for path in there if path.exists()])
        if step == dies_at:
            raise Killed

    with pytest.raises(Killed):
        trainer.run(wanted, progress=look)
    each_step, each_pass = [[], [1], [2], [3], [4, 3]], [[], [], [], [3], [3]]
    assert found == (each_step if minutes else each_pass)[:dies_at]
    assert_same(trainer.run(dataclasses.replace(wanted, resume=True)), whole)


class Training:
    """Steps of a second each, and saves that take as long as it is told."""

    def __init__(self, *, takes=0.0, refused=0):
        self.now, self.step, self.left = 0.0, 0, 0
        self.takes, self.refused = takes, refused
        self.tried, self.notes = [], []

    def save(self):
        self.tried.append(self.step)
        self.now += self.takes
        if len(self.tried) <= self.refused:
            raise StorageError("no space left")

    def run(self, steps):
        self.left = steps
        between = BetweenSteps(
            Ranks(), StopRequest(), step=lambda: self.step, save=self.save, minutes=1,
            note=self.notes.append, clock=lambda: self.now,
        )  # fmt: skip
        for _ in between.batches(self):
            self.now += 1
            self.step += 1
        return self

    def __len__(self):
        return self.left

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= 1
        return object()


@pytest.mark.parametrize(("takes", "apart"), [(0.0, 60), (0.5, 60), (10.0, 500), (100.0, 5000)])
def test_saving_never_takes_more_than_a_fiftieth_of_the_time(takes, apart):
    found = Training(takes=takes).run(20_000).tried
    # the first save shows how long one takes
    assert found[0] == 60
    assert {later - before for before, later in pairwise(found)} == {apart}


def test_a_disk_that_is_full_for_a_moment_costs_a_checkpoint_and_not_the_run():
    found = Training(refused=1).run(130)
    assert found.tried == [60, 120]
    assert found.notes == ["step 60 is not saved (no space left): going on, and trying again"]


@pytest.mark.parametrize("minutes", [-1, float("nan"), float("inf")])
def test_minutes_that_are_none_are_refused(minutes):
    with pytest.raises(UsageError, match="checkpoint_minutes"):
        TrainConfig(labels="ground-truth", checkpoint_minutes=minutes)
