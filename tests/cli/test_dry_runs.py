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
