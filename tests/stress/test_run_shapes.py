"""R28: the ends of a run: one crop, one image, one class, one shard, more warm-up than epochs, more ranks than images."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import trainer
from labelstore import MarginalSmoothing
from labelstore.errors import LabelStoreError
from tests.flat_options import label_images
from tests.generation.conftest import OPTIONS, write_photographs, write_teacher
from trainer import TrainConfig

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "labels": "ground-truth", "model": "resnet18", "model_kwargs": OPTIONS, "input_size": 32, "lr": 0.01,
    "device": "cpu", "workers": 1, "warmup_epochs": 0,
}  # fmt: skip
# 21 images lie in data, the first of each class in few, one alone in one, all of one class in same
SHAPES = [
    {"folder": folder, "batch_size": batch, "crops_per_image": m, "epochs": epochs}
    for folder, batch, m, epochs in [
        # the last step has one image: of one crop, then of two
        ("data", 10, 1, 2), ("data", 20, 1, 1), ("data", 5, 1, 1), ("data", 4, 1, 1), ("data", 3, 1, 1),
        ("data", 2, 1, 1), ("data", 1, 1, 1), ("data", 8, 2, 2), ("data", 40, 2, 2), ("data", 21, 1, 1),
        ("data", 22, 1, 1), ("data", 500, 4, 4),
        ("few", 2, 1, 2), ("few", 3, 1, 1), ("few", 64, 1, 1), ("few", 2, 2, 2), ("few", 4, 4, 1), ("few", 1, 1, 1),
        ("one", 1, 1, 1), ("one", 2, 2, 2), ("one", 64, 1, 3), ("one", 64, 2, 1),
        ("same", 4, 1, 1), ("same", 4, 2, 2),
    ]
] + [
    {"folder": "data", "batch_size": 10, "crops_per_image": 1, "epochs": 1, **more}
    for more in [
        {"warmup_epochs": 5}, {"warmup_epochs": 5, "serrated": True}, {"warmup_epochs": 1},
        {"scheduler": "linear", "warmup_epochs": 3}, {"scheduler": "step", "warmup_epochs": 3},
        {"scheduler": "multistep", "milestones": (5,)}, {"warmup_epochs": 5, "warmup_prefix": True},
        {"accumulation_steps": 2}, {"accumulation_steps": 5}, {"accumulation_steps": 10}, {"accumulation_steps": 99},
        {"ema_decay": 0.9}, {"mixing": "cutmix"}, {"mixing": "mixup"},
        {"crops_per_image": 2, "epochs": 4, "single_crop_first": 1, "single_crop_last": 1},
    ]
] + [
    {"folder": folder, "labels": "fkd", "store": store, "batch_size": batch, "crops_per_image": m, "epochs": epochs}
    for folder, store, batch, m, epochs in [
        ("one", "one-1", 1, 1, 1), ("one", "one-1", 4, 1, 3), ("one", "one-1", 4, 2, 2), ("few", "few-1", 4, 1, 2),
        ("few", "few-1", 2, 2, 2), ("few", "few-4", 3, 1, 1),
    ]
]  # fmt: skip
RANKS = [
    {"folder": folder, "batch_size": batch, "crops_per_image": m, "epochs": epochs}
    for folder, batch, m, epochs in [
        ("one", 4, 2, 2), ("few", 8, 1, 1), ("few", 4, 1, 1), ("data", 10, 1, 1), ("data", 2, 1, 1), ("one", 8, 1, 1),
        ("data", 4, 2, 2),
    ]
]  # fmt: skip
"""The same on two ranks."""


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    data = write_photographs(root / "data" / "train")
    for name in ("bird", "cat", "dog"):
        (root / "few" / "train" / name).mkdir(parents=True)
        shutil.copy(data / name / "1.jpg", root / "few" / "train" / name)
    shutil.copytree(data / "cat", root / "same" / "train" / "cat")
    (root / "one" / "train" / "cat").mkdir(parents=True)
    shutil.copy(data / "cat" / "1.jpg", root / "one" / "train" / "cat")
    teacher = str(write_teacher(root / "teacher"))
    for folder, crops in (("one", 1), ("few", 1), ("few", 4)):
        label_images(
            root / f"{folder}-{crops}", images=root / folder / "train", teacher=teacher, classes="teacher",
            codec=MarginalSmoothing(k=2), num_crops=crops, device="cpu", workers=1,
        )  # fmt: skip
    return root


def settings(given: Path, shape: dict) -> dict:
    shape = dict(shape)
    data = given / shape.pop("folder")
    if "store" in shape:
        shape["store"] = str(given / shape["store"])
    return {**SETTINGS, "data": str(data), **shape}


def test_a_run_trains_or_is_refused_before_its_first_step(given, tmp_path, scale, matrix):
    """R28: every shape of a run, in a folder of its own."""
    chosen = SHAPES if scale >= 2 else SHAPES[:: round(4 / scale)]
    wrong, trained = [], 0
    for number, shape in enumerate(chosen):
        output, taken = tmp_path / str(number), []
        try:
            config = TrainConfig.from_mapping({**settings(given, shape), "output": str(output)})
            run = trainer.run(config, progress=lambda step, steps, taken=taken: taken.append(step))
        except LabelStoreError as error:
            if taken or error.exit_code == 1 or "\n" in str(error):
                wrong.append(f"{shape}: after {len(taken)} steps: {error}")
        except Exception as error:  # noqa: BLE001 - what a run may not end with
            wrong.append(f"{shape}: after {len(taken)} steps: {type(error).__name__}: {error}")
        else:
            trained += 1
            if taken != list(range(1, run.steps + 1)) or not math.isfinite(run.train_loss):
                wrong.append(f"{shape}: {len(taken)} of {run.steps} steps, loss {run.train_loss}")
    matrix.record("R28", shapes=len(chosen), trained=trained, wrong=len(wrong))
    assert not wrong, "\n".join(wrong)
    # a disk or a setting that has every run refused must not look like success
    assert trained >= len(chosen) // 2


def test_a_step_of_one_image_and_one_crop_is_joined_by_another(given):
    """R28: 21 images in steps of 10: the last has two, and none is left out; steps of 2 cannot be mended so."""
    steps = []
    config = TrainConfig.from_mapping(settings(given, SHAPES[0]))
    run = trainer.run(config, progress=lambda step, of: steps.append(of))
    assert len(steps) == run.steps == 6
    config = TrainConfig.from_mapping(settings(given, {**SHAPES[0], "batch_size": 2}))
    with pytest.raises(LabelStoreError, match="a single crop, over which its batch norm"):
        trainer.run(config)


def test_ranks_and_few_images(given, tmp_path, scale, matrix):
    """R28: on two ranks, some of which have nothing to do."""
    if scale < 1:
        pytest.skip("two processes that load torch: make stress runs them")
    plan = [{**settings(given, shape), "name": str(n)} for n, shape in enumerate(RANKS)]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [
        sys.executable,
        ROOT / "tests" / "trainer" / "rank_worker.py",
        tmp_path / "plan.json",
        tmp_path,
    ]
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]  # fmt: skip
    try:
        assert [process.wait(timeout=1200) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    told = [json.loads((tmp_path / f"{n}.0.json").read_text()) for n in range(len(plan))]
    wrong = [(shape, each) for shape, each in zip(RANKS, told, strict=True) if _is_wrong(each)]
    matrix.record("R28", shapes=len(plan), wrong=len(wrong))
    assert not wrong


def _is_wrong(told: dict) -> bool:
    return bool(told["seen"]) if "error" in told else not math.isfinite(told["loss"])
