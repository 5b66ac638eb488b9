"""R19: a training that is killed anywhere and resumed ends with the very weights of one that was not."""

import csv
import dataclasses
import os
import random
import signal

import pytest
import torch

import trainer
from labelstore import MarginalSmoothing
from labelstore.arrays import durable
from labelstore.errors import RejectedInput
from tests.flat_options import label_images
from tests.generation.conftest import OPTIONS, write_teacher
from tests.trainer.small_runs import small_run, write_data
from trainer import between_steps
from trainer.checkpoint import files

POINTS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_data(tmp_path_factory.mktemp("data"), 3, 1)
    teacher = write_teacher(root.parent / "teacher")
    label_images(
        root / "store", images=root / "train", teacher=str(teacher), codec=MarginalSmoothing(k=2),
        num_crops=8, images_per_shard=8, device="cpu",
    )  # fmt: skip
    return root


def config(data, output, **changes):
    return small_run(
        changes, data=data, labels="fkd", store=data / "store", model_kwargs={**OPTIONS, "drop_rate": 0.2},
        mixing="selfmix", epochs=6, output=output,
    )  # fmt: skip


def killed_run(wanted, at: tuple[str, int]) -> bool:
    """Train in a child that dies at the n-th step, or at the n-th change of a file; whether it died."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        what, left = at

        def die():
            os.kill(os.getpid(), signal.SIGKILL)

        def counting(function):
            def counted(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    die()
                return function(*arguments, **options)

            return counted

        if what == "file":
            for module in (durable.os, files.os):
                for name in ("write", "fsync", "replace", "link", "rename"):
                    setattr(module, name, counting(getattr(module, name)))
        # every step is saved, not only those that a pass ends with
        between_steps.SAVING_TAKES = 1e9
        trainer.run(
            dataclasses.replace(wanted, checkpoint_minutes=1e-9),
            progress=lambda step, steps: die() if what == "step" and step >= left else None,
        )
    except BaseException:  # noqa: BLE001 - a child must not come back into the test
        os._exit(1)
    os._exit(0)


def same_weights(one, other) -> bool:
    first, second = one.model.state_dict(), other.model.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_resumed_after_a_kill_anywhere(data, scale, matrix, tmp_path):
    whole = trainer.run(config(data, tmp_path / "whole"))
    rng = random.Random(3)
    points = [("step", n) for n in range(1, whole.steps)]
    # a checkpoint a step and two a pass, with its summary and best weights: some hundred changes of files
    points += [("file", n) for n in range(100)]
    chosen = rng.sample(points, min(len(points), max(2, round(POINTS * scale))))
    killed = different = 0
    for n, point in enumerate(chosen):
        wanted = config(data, tmp_path / f"run{n}", resume=True)
        killed += killed_run(wanted, point)
        if n % 3 == 0:
            killed += killed_run(wanted, (point[0], point[1] // 2 + 1))  # and once more
        resumed = trainer.run(wanted)
        different += not same_weights(whole, resumed)
        with (tmp_path / f"run{n}" / "summary.csv").open(newline="") as lines:
            assert [row["epoch"] for row in csv.DictReader(lines)] == ["2", "4", "6"], point
    matrix.record("R19", points=len(chosen), kills=killed, different=different)
    assert different == 0
    assert killed >= len(chosen) / 2


def test_a_damaged_checkpoint_is_refused_and_the_one_before_named(data, scale, matrix, tmp_path):
    output = tmp_path / "run"
    trainer.run(config(data, output))
    last, rng, refused = output / "last.pth.tar", random.Random(4), 0
    good = last.read_bytes()
    for _ in range(max(3, round(3 * scale))):
        last.write_bytes(good[: rng.randrange(len(good))])
        with pytest.raises(RejectedInput, match=r"previous\.pth\.tar is there") as caught:
            trainer.run(config(data, output, resume=True))
        assert "\n" not in str(caught.value)
        refused += 1
    matrix.record("R19", refused=refused)
