"""R27: something else is done to what a run uses, at any of its steps: the run is refused, or ends bit-equal."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import labelstore
import trainer
from labelstore.errors import LabelStoreError
from tests.generation.conftest import OPTIONS
from tests.stress.commands import TEACHING, World, copy_world, make_given, run
from trainer import TrainConfig


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    return make_given(tmp_path_factory.mktemp("given"))


def config(world: World, output: Path) -> TrainConfig:
    return TrainConfig(
        data=world.given / "data", labels="fkd", store=world.store, model="resnet18", model_kwargs=OPTIONS,
        input_size=32, batch_size=4, crops_per_image=2, epochs=4, device="cpu", workers=1, output=output,
        scratch=world.folder / "scratch",
    )  # fmt: skip


def second_run(world: World) -> None:
    """Into the folder that the run writes."""
    with pytest.raises(LabelStoreError, match="in use by a run"):
        trainer.run(config(world, world.folder / "run"))


ACTIONS = {
    "moved": lambda w: w.store.rename(w.folder / "elsewhere"),
    "removed": lambda w: shutil.rmtree(w.store),
    "frozen": lambda w: run("labelstore", ["freeze", w.store]),
    "dropped": lambda w: run("labelstore", ["drop", "label-set", "teacher", w.store, "--yes"]),
    "grown": lambda w: run("labelstore", [
        "grow", w.store, "--images", w.images, "--teacher", w.teacher, "--num-crops", "6", *TEACHING,
    ]),
    "calibrated": lambda w: run("labelstore", ["calibrate", w.store, "--low", "0.1", "--name", "more"]),
    "variants": lambda w: run("labelstore", ["variants", w.store, "--compression", "hard", "--name", "h"]),
    "collected": lambda w: run("labelstore", ["gc", w.store]),
    "migrated": lambda w: run("labelstore", ["migrate", w.store]),
    "scratch removed": lambda w: shutil.rmtree(w.folder / "scratch"),
    "second run": second_run,
}  # fmt: skip
"""What happens to a store, its scratch folder or its run folder while a run reads and writes them."""
STEPS = (1, 2, 4, 5)


def beside(world: World) -> None:
    """A second run with the same draw file."""
    trainer.run(drawn(world, world.folder / "beside"))


def drawn(world: World, output: Path) -> TrainConfig:
    """A run that lays its crops out in a draw file, for its mask."""
    return replace(config(world, output), labels="ferkd", mask="kept")


OF_DRAWN = {
    "draw file removed": lambda w: shutil.rmtree(w.folder / "scratch" / "labelstore-draws"),
    "run beside": beside,
    "mask dropped": ACTIONS["dropped"],
    "mask updated": lambda w: run(
        "labelstore", ["calibrate", w.store, "--update", "--name", "kept"]
    ),
}
"""What happens to a draw file, or to the mask that it is of, while a run reads it."""


def test_a_run_is_refused_or_bit_equal(given, tmp_path, scale, matrix, capfd):
    """R27: two passes of three steps; each action at steps of both."""
    alone = copy_world(given, tmp_path / "alone")
    (alone.folder / "scratch").mkdir()
    of_run = {
        kind: trainer.run(kind(alone, alone.folder / kind.__name__)).model.state_dict()
        for kind in (config, drawn)
    }
    chosen = [
        (kind, name, actions[name], step)
        for kind, actions in ((config, ACTIONS), (drawn, OF_DRAWN))
        for name in actions
        for step in STEPS
    ]
    if scale < 2:
        chosen = chosen[:: round(6 / scale)]
    wrong, ended = [], 0
    for number, (kind, name, action, at) in enumerate(chosen):
        world = copy_world(given, tmp_path / str(number))
        (world.folder / "scratch").mkdir()

        def act(step: int, steps: int, world=world, action=action, at=at) -> None:
            if step == at:
                action(world)

        try:
            found = trainer.run(kind(world, world.folder / "run"), progress=act)
        except LabelStoreError as error:
            if error.exit_code == 1 or "\n" in str(error):
                wrong.append(f"{name} at step {at}: {error}")
        except Exception as error:  # noqa: BLE001 - what a run may not end with
            wrong.append(f"{name} at step {at}: {type(error).__name__}: {error}")
        else:
            state, expected = found.model.state_dict(), of_run[kind]
            ended += 1
            if not all(torch.equal(state[key], expected[key]) for key in expected):
                wrong.append(f"{name} at step {at}: other weights")
        shutil.rmtree(world.folder)
    matrix.record("R27", interleavings=len(chosen), ended=ended, different=len(wrong))
    capfd.readouterr()
    assert not wrong, "\n".join(wrong)
    # a disk or a setting that has every run refused must not look like success
    assert ended >= len(chosen) // 3


UNPACKED = {
    "removed": lambda w, labels: shutil.rmtree(w.folder / "scratch"),
    "again": lambda w, labels: labels.unpacked(w.folder / "scratch").batch([3], [[0]]),
    "store moved": lambda w, labels: w.store.rename(w.folder / "elsewhere"),
    "store removed": lambda w, labels: shutil.rmtree(w.store),
    "frozen": lambda w, labels: run("labelstore", ["freeze", w.store]),
    "dropped": lambda w, labels: run("labelstore", ["drop", "label-set", "teacher", w.store, "--yes"]),
}  # fmt: skip
"""What happens to an unpacked copy, or to its store, after some batches were taken."""


@pytest.mark.parametrize("name", UNPACKED)
def test_an_unpacked_copy_is_refused_or_equal(name, given, tmp_path, matrix, capfd):
    """R27: images that were read before, and images that were not."""
    world = copy_world(given, tmp_path)
    (world.folder / "scratch").mkdir()
    with labelstore.open(world.store) as store:
        labels = store.label_set("teacher")
        rows, crops = list(range(store.num_rows)), [[1, 3]] * store.num_rows
        expected = labels.batch(rows, crops)
        copy = labels.unpacked(world.folder / "scratch")
        copy.batch(rows[:2], crops[:2])
        UNPACKED[name](world, labels)
        try:
            found = copy.batch(rows, crops)
        except LabelStoreError as error:
            found, refusal = None, error
        if found is None:
            assert refusal.exit_code != 1
            assert "\n" not in str(refusal)
        else:
            for field in ("class_ids", "probs", "rest", "boxes", "flips"):
                np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    capfd.readouterr()
    matrix.record("R27", interleavings=1, different=0)
