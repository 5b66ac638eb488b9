"""Two ranks (gloo) train what one rank trains; they stop together, and none outlives the others silently."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import trainer
from labelstore.errors import RejectedInput, StorageError, UsageError
from labelstore.images import open_images
from tests.generation.conftest import OPTIONS, write_teacher
from tests.trainer.small_runs import write_data
from trainer.ranks import Ranks, join_ranks
from trainer.sampler import Deal, PassSchedule

ROOT = Path(__file__).parents[2]
VIT = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"img_size": 32, "depth": 1, "embed_dim": 12, "num_heads": 3},
}
RESNET = {"model": "resnet18", "model_kwargs": {**OPTIONS, "drop_rate": 0.2}}
SETTINGS = {
    "labels": "ground-truth",
    "input_size": 32,
    # 4 images per step: 21 images leave one image for the last step, and none for rank 1
    "batch_size": 8,
    "crops_per_image": 2,
    "epochs": 4,
    "lr": 0.05,
    "device": "cpu",
    "workers": 1,
}


def told_by(teacher: Path) -> dict[str, object]:
    """A teacher's labels, and a discriminator, whose weights are learnt by all ranks too."""
    return {"labels": "teacher", "teacher": str(teacher), "discriminator": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def out(data, tmp_path_factory) -> Path:
    """Results of all trainings, one pair of processes for all of them."""
    out = tmp_path_factory.mktemp("out")
    whole = {**RESNET, "ema_decay": 0.9, "accumulation_steps": 2, "clip_grad": 1.0}
    whole |= {"rand_augment": 9, "erasing_prob": 0.5, "mixing": "selfmix"}
    halves = {**whole, "output": str(out / "run")}
    failing = {**whole, "output": str(out / "failing-run")}
    plan = [
        {**VIT, "name": "vit"},
        {**VIT, "name": "vit-single", "single_crop_first": 1, "single_crop_last": 1},
        {**whole, "name": "whole", "output": str(out / "whole-run")},
        {**halves, "name": "half", "stop_at": 8},
        # by threads until then: the loader is no part of what a run is
        {**halves, "name": "resumed", "resume": True, "loader": "process"},
        {**failing, "name": "failing", "fail_at": 8, "checkpoint_minutes": 1e-9},
        {**failing, "name": "mended", "resume": True},
        {**VIT, "name": "unseen", "epochs": 2, "val": str(broken_for_rank_1(data, out / "val"))},
        {**VIT, "name": "vit-synced", "sync_batchnorm": True},
        {**VIT, "name": "vit-told", **told_by(write_teacher(out / "teacher"))},
        {**VIT, "name": "lost", "lost_at": 3},
        # 6 steps are a pass
        {**VIT, "name": "ended", "end_at": 6, "output": str(out / "ended-run")},
        {**VIT, "name": "dies", "die_at": 3},
    ]
    plan = [{**SETTINGS, "data": str(data), **run} for run in plan]
    (out / "plan.json").write_text(json.dumps(plan))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    script = str(Path(__file__).with_name("rank_worker.py"))
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(out / "plan.json"), str(out)],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    try:
        codes = [process.wait(timeout=1200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 9]
    return out


def broken_for_rank_1(data: Path, folder: Path) -> Path:
    """Validation images whose second one, which is rank 1's, lacks its end."""
    shutil.copytree(data / "val", folder)
    path = folder / open_images(folder, keys_only=True).keys[1]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return folder


def record(out: Path, name: str, rank: int) -> dict:
    return json.loads((out / f"{name}.{rank}.json").read_text())


def weights(out: Path, name: str, rank: int) -> dict[str, torch.Tensor]:
    return torch.load(out / f"{name}.{rank}.pth", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "vit-single", "vit-synced", "vit-told"])
def test_two_ranks_train_what_one_trains(data, out, name):
    more = {"single_crop_first": 1, "single_crop_last": 1} if name == "vit-single" else {}
    if name == "vit-told":
        more = told_by(out / "teacher")
    one = trainer.run(trainer.TrainConfig.from_mapping({**SETTINGS, "data": data, **VIT, **more}))
    both = record(out, name, 0), record(out, name, 1)
    assert both[0]["loss"] == both[1]["loss"] == pytest.approx(one.train_loss, rel=1e-6)
    assert both[0]["top1"] == both[1]["top1"] == one.top1
    for key, tensor in one.model.state_dict().items():
        for rank in range(2):
            torch.testing.assert_close(weights(out, name, rank)[key], tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "vit-single"])
def test_ranks_share_the_crops_of_every_step(out, name):
    """The same (image, crop) set as one rank's, each crop once, for the images that Deal says."""
    schedule = PassSchedule(crops_per_pass=(2, 2) if name == "vit" else (1, 2, 1))
    deal = Deal(schedule=schedule, num_images=21, batch_size=8, world_size=2)
    seen = [record(out, name, rank)["seen"] for rank in range(2)]
    assert len(seen[0]) == len(seen[1]) == deal.num_steps
    step, alone = 0, []
    for p, m in enumerate(schedule.crops_per_pass):
        drawn = []
        for inside in range(deal.steps(p)):
            crops = [tuple(crop) for rank in seen for crop in rank[step]]
            assert len(crops) == deal.images_of_step(p, inside) * m
            if deal.images_of_step(p, inside) == 1:
                alone.append(seen[1][step])
            drawn += crops
            step += 1
        positions = schedule.positions(p)
        assert sorted(drawn) == [(image, t) for image in range(21) for t in positions]
    assert alone
    assert not any(alone), "a step of one image has nothing for rank 1"


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_resuming_changes_nothing(out):
    assert record(out, "half", 0)["stopped"] == "KeyboardInterrupt"
    assert record(out, "half", 1)["stopped"] == "KeyboardInterrupt"
    assert len(record(out, "half", 0)["seen"]) == len(record(out, "half", 1)["seen"])
    assert_same_as_whole(out, "resumed", "run")


@pytest.mark.slow
def test_a_disk_that_refuses_one_rank_ends_all_with_what_was_learnt(out):
    silent, error = record(out, "failing", 0), record(out, "failing", 1)
    assert error["error"] == "StorageError: Stale file handle"
    assert (silent["stopped"], silent["code"]) == ("SystemExit", StorageError.exit_code)
    # two micro-batches a step: inside the first pass
    assert len(error["seen"]) == 8
    assert_same_as_whole(out, "mended", "failing-run")


@pytest.mark.slow
def test_a_validation_image_that_one_rank_cannot_read_ends_all_with_one_line(out):
    silent, error = record(out, "unseen", 0), record(out, "unseen", 1)
    assert error["error"].startswith("RejectedInput: ")
    assert "cannot be decoded" in error["error"]
    assert "\n" not in error["error"]
    assert (silent["stopped"], silent["code"]) == ("SystemExit", RejectedInput.exit_code)


def assert_same_as_whole(out, name, folder):
    assert record(out, name, 0)["loss"] == record(out, "whole", 0)["loss"]
    for rank in range(2):
        whole = weights(out, "whole", rank)
        for key, tensor in weights(out, name, rank).items():
            assert torch.equal(tensor, whole[key]), key
    for file in ("model.safetensors", "model_ema.safetensors"):
        one, two = (load_file(out / run / file) for run in (folder, "whole-run"))
        assert all(torch.equal(one[key], two[key]) for key in {*one, *two}), file
    one, two = (
        (out / run / "summary.csv").read_text().splitlines() for run in (folder, "whole-run")
    )
    # all but the seconds
    assert [r.rsplit(",", 1)[0] for r in one] == [r.rsplit(",", 1)[0] for r in two]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "how"), [("lost", 4, "SystemExit"), ("ended", 6, "KeyboardInterrupt")]
)
def test_a_signal_is_never_lost_and_never_stops_one_rank_alone(out, name, steps, how):
    """In the middle of the exchange of signals, and after the last exchange of a pass."""
    for rank in range(2):
        found = record(out, name, rank)
        assert (found["stopped"], len(found["seen"])) == (how, steps)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_with_one_line(out):
    error = record(out, "dies", 0)["error"]
    assert error.startswith("RankLost: rank 0 lost the others")
    assert "\n" not in error


def test_without_torchrun_there_is_one_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with join_ranks() as ranks:
        assert ranks == Ranks()
        assert ranks.gathered("a") == ["a"]
        assert ranks.on_first(lambda: 3) == 3


@pytest.mark.parametrize(("variable", "value"), [("RANK", "-1"), ("WORLD_SIZE", "two")])
def test_a_broken_environment_is_refused(monkeypatch, variable, value):
    good = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, text in (good | {variable: value}).items():
        monkeypatch.setenv(name, text)
    with pytest.raises(UsageError, match="torchrun"), join_ranks():
        pass


def test_synced_batchnorm_is_for_gpus(data):
    with pytest.raises(UsageError, match="sync_batchnorm"):
        trainer.run(
            trainer.TrainConfig.from_mapping(
                {**SETTINGS, "data": data, **RESNET, "sync_batchnorm": True}
            )
        )
