"""R27: something else is done to what a run uses, at any of its steps: the run is refused, or ends bit-equal."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

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


def test_a_run_is_refused_or_bit_equal(given, tmp_path, scale, matrix, capfd):
    """R27: two passes of three steps; each action at steps of both."""
    alone = copy_world(given, tmp_path / "alone")
    (alone.folder / "scratch").mkdir()
    expected = trainer.run(config(alone, alone.folder / "run")).model.state_dict()
    chosen = [(name, step) for name in ACTIONS for step in STEPS]
    if scale < 2:
        chosen = chosen[:: round(6 / scale)]
    wrong = []
    for number, (name, at) in enumerate(chosen):
        world = copy_world(given, tmp_path / str(number))
        (world.folder / "scratch").mkdir()

        def act(step: int, steps: int, world=world, name=name, at=at) -> None:
            if step == at:
                ACTIONS[name](world)

        try:
            found = trainer.run(config(world, world.folder / "run"), progress=act)
        except LabelStoreError as error:
            if error.exit_code == 1 or "\n" in str(error):
                wrong.append(f"{name} at step {at}: {error}")
        except Exception as error:  # noqa: BLE001 - what a run may not end with
            wrong.append(f"{name} at step {at}: {type(error).__name__}: {error}")
        else:
            state = found.model.state_dict()
            if not all(torch.equal(state[key], expected[key]) for key in expected):
                wrong.append(f"{name} at step {at}: other weights")
        shutil.rmtree(world.folder)
    matrix.record("R27", interleavings=len(chosen), different=len(wrong))
    capfd.readouterr()
    assert not wrong, "\n".join(wrong)
