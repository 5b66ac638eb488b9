"""A checkpoint's network is named once: a store that has it as a teacher knows it."""

import pytest
import timm
from safetensors.torch import save_file

from tests.stress.commands import CASES, TEACHING, World, make_given, run


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    model = timm.create_model("test_vit", num_classes=3)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return make_given(folder)


@pytest.mark.slow
def test_add_teacher_and_grow_know_the_network_of_a_recorded_checkpoint(given, tmp_path, capsys):
    world = World(tmp_path, given)
    teacher = ["--teacher", given / "weights.safetensors"]
    create = [*CASES["labelstore", "create"](world, "store"), *teacher]
    assert run("labelstore", create) == 2
    assert "--teacher-model" in capsys.readouterr().err
    assert run("labelstore", [*create, "--teacher-model", "timm:test_vit"]) == 0
    about = ["--images", world.images, *teacher, *TEACHING]
    assert run("labelstore", ["grow", world.store, "--num-crops", "6", *about]) == 0
    more = ["add-teacher", world.store, "--compression", "hard", "--name", "hard", *about]
    assert run("labelstore", more) == 0, capsys.readouterr().err
