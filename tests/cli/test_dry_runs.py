"""A dry run says yes to what the command does, and no to what it refuses, in the same words; it leaves no trace."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.stress.commands import CASES, copy_world, make_given, run
from tests.stress.test_command_line_contract import tree


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    given = make_given(tmp_path_factory.mktemp("given"))
    save_file({"x": torch.zeros(1)}, given / "weights.safetensors")
    return given


@pytest.fixture
def world(given, tmp_path):
    return copy_world(given, tmp_path)


REFUSED = {
    "no such checkpoint": ["--teacher", "nowhere.pth", "--teacher-model", "timm:resnet18"],
    "a checkpoint without its weights": ["--teacher", "{given}/weights.safetensors", "--teacher-model", "timm:resnet18"],
    "no such network": ["--teacher", "timm:nonesuch"],
    "k above C": ["--k", "4"],
    "no divisor": ["--crops-per-shard", "3"],
    "fewer folders than outputs": ["--class-map", "wnid"],
    "no such device": ["--device", "cuda:99"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("command", ["create", "add-teacher"])
def test_what_a_command_refuses_its_dry_run_refuses(world, command, what, capsys):
    if command == "add-teacher" and what == "no divisor":
        pytest.skip("the plan is there")
    more = [part.format(given=world.given) for part in REFUSED[what]]
    arguments = [*CASES["labelstore", command](world), *more]
    before = tree(world.folder)
    dry = run("labelstore", [*arguments, "--dry-run"]), capsys.readouterr().err
    assert dry[0] not in (0, 1), dry
    assert tree(world.folder) == before
    assert (run("labelstore", arguments), capsys.readouterr().err) == dry


def flip(world):
    """One byte of a shard is another."""
    path = next((world.store / "arrays.zarr" / "labels" / "teacher" / "class_id").glob("c.*"))
    path.write_bytes(b"x" + path.read_bytes()[1:])


def train(world, *more):
    return [*CASES["trainer", "run"](world), *more]


WRONG = {
    "a mask with other values": lambda w: ["calibrate", w.store, "--low", "0.3", "--name", "kept"],
    "a mask whose name is no folder's": lambda w: ["calibrate", w.store, "--name", "../x"],
    "a mask by conditions": lambda w: ["mask", w.store, "--name", "kept", "--discard", "area < 1"],
    "no class map": lambda w: ["classes", w.store, "--class-map", "nowhere.csv"],
    "a lease of nobody": lambda w: ["leases", w.store, "--break", "process 1 on x"],
    "too few pictures": lambda w: ["demo-images", w.folder / "demo", "--train", "0"],
    "pictures in a folder of others": lambda w: ["demo-images", w.store.parent],
    "a store over a file": lambda w: CASES["labelstore", "create"](w, "store/catalogue.db"),
    "a store over a folder": lambda w: CASES["labelstore", "create"](w, "."),
    "damage that would be frozen": lambda w: [flip(w), "freeze", w.store, w.folder / "f"][1:],
    "another teacher's labels": lambda w: [flip(w), "repair", w.store, "--teacher", w.other_teacher][1:],
    "no store to learn from": lambda w: train(w, "--store", w.folder / "nowhere"),
    "no such student": lambda w: train(w, "--model", "nonesuch"),
    "no such mask": lambda w: train(w, "--labels", "ferkd", "--mask", "nonesuch"),
    "no images to learn from": lambda w: train(w, "--data", w.given / "teacher"),
    "a run over a file": lambda w: train(w, "--output", w.store / "catalogue.db"),
    "no such device for a student": lambda w: train(w, "--device", "cuda:99"),
}  # fmt: skip


@pytest.mark.sample(6)
@pytest.mark.parametrize("what", WRONG)
def test_what_is_refused_is_refused_dry(world, what, capsys):
    arguments = WRONG[what](world)
    refused_alike("labelstore" if arguments[0] != "run" else "trainer", arguments, world, capsys)


def refused_alike(program, arguments, world, capsys):
    before = tree(world.folder)
    capsys.readouterr()
    dry = run(program, [*arguments, "--dry-run"]), capsys.readouterr().err
    assert dry[0] not in (0, 1), (arguments, dry)
    assert tree(world.folder) == before
    wet = run(program, arguments), capsys.readouterr().err
    # a line of progress may stand before it
    assert (dry[0], dry[1].splitlines()[-1:]) == (wet[0], wet[1].splitlines()[-1:])


@pytest.mark.parametrize(
    "command", ["calibrate", "mask", "variants", "drop", "grow", "add-teacher"]
)
def test_a_dry_run_on_a_frozen_store_is_refused(world, command, capsys):
    assert run("labelstore", ["freeze", world.store]) == 0
    refused_alike("labelstore", CASES["labelstore", command](world), world, capsys)


def test_a_dry_training_is_followed(world, capsys):
    before = tree(world.folder)
    assert run("trainer", train(world, "--dry-run", "--scratch", world.folder / "scratch")) == 0
    assert "batch_size: 4" in capsys.readouterr().out
    assert tree(world.folder) == before
    assert run("trainer", train(world)) == 0
    log = (world.folder / "run" / "log.txt").read_text().splitlines()
    assert "crops_seen 12, train_loss " in log[-1]  # what is printed at the end, too
    assert " best_top1 " in log[-1]
    refused_alike("trainer", train(world), world, capsys)
    assert run("trainer", train(world, "--resume", "--dry-run")) == 0


def test_a_dry_run_on_a_store_that_exists_names_its_differences(world, capsys):
    arguments = [*CASES["labelstore", "create"](world, "store"), "--num-crops", "8", "--dry-run"]
    assert run("labelstore", arguments) == 5
    said = capsys.readouterr().err
    assert f"{world.store} exists with num crops 4, asked for 8" in said
    other = [*CASES["labelstore", "create"](world, "store"), "--k", "1", "--dry-run"]
    assert run("labelstore", other) == 5


@pytest.mark.slow
def test_a_dry_run_that_says_yes_is_followed(world, capsys):
    for command in ("create", "add-teacher", "grow"):
        arguments = CASES["labelstore", command](world)
        before = tree(world.folder)
        assert run("labelstore", [*arguments, "--dry-run", "--json"]) == 0, capsys.readouterr()
        assert json.loads(capsys.readouterr().out)
        assert tree(world.folder) == before
        assert run("labelstore", arguments) == 0
        capsys.readouterr()
