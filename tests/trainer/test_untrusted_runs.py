"""Run folders that somebody else made: no code that they name is run, and none of their files exhausts the machine."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cli import errors, trainer_app
from labelstore.errors import RejectedInput, UsageError
from labelstore.teachers.teacher import load_teacher
from trainer.config import TrainConfig
from trainer.models import load_run
from trainer.report import write_report

RAN = Path("ran")


def crafted(num_classes: int, **options: object) -> nn.Module:
    """Stands for any code of this machine that a config could name."""
    RAN.write_text("ran")
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))


NAME = f"{__name__}:crafted"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            pixels = np.random.default_rng(ord(name)).integers(0, 255, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / part / name / "1.png")
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a network that a function makes, as one would download it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    config = TrainConfig(
        labels="ground-truth", model=NAME, data=images, input_size=16, num_classes=2, epochs=4
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "summary.csv").write_text("epoch,train_loss\n4,0.5\n")
    network = crafted(num_classes=2)
    RAN.unlink()
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = errors.run(trainer_app.commands, "trainer", [str(each) for each in arguments])
    return code, *capsys.readouterr()


COMMANDS = {
    "evaluate": ["run", "--device", "cpu", "--json"],
    "probe": ["run", "--data", "data", "--device", "cpu", "--json"],
    "export": ["run", "--out", "w.safetensors", "--format", "safetensors", "--json"],
    "attention": ["run", "--image", "a/1.png", "--device", "cpu", "--layer", "0", "--json"],
    "report": ["run", "--images", "data/val", "--device", "cpu", "--json"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_code_that_a_folder_names_runs_only_where_the_user_names_it_too(run, name, capsys):
    code, _, err = command(capsys, name, *COMMANDS[name])
    assert code in (2, 7)
    assert f"--model {NAME}" in err
    assert not RAN.exists()
    code, out, err = command(capsys, name, *COMMANDS[name], "--model", NAME)
    if name != "attention":  # this network has no map to show
        assert code == 0, err
        assert isinstance(json.loads(out), dict)
    assert RAN.exists()


def test_load_run_takes_the_callers_word_for_the_code(run):
    with pytest.raises(UsageError, match="which code to run"):
        load_run(run)
    with pytest.raises(UsageError, match="which code to run"):
        load_run(run / "model.safetensors")
    assert not RAN.exists()
    network, config = load_run(run, model=NAME)
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
    assert config.model == NAME


@pytest.mark.parametrize(
    "model",
    [
        "torch.hub:load",
        "os:system",
        "trainer.models.networks:build",
        "trainer.models:load_run",
        "trainer.models.reactnet:partial",
    ],
)
def test_neighbours_of_the_packages_own_networks_are_no_exception(run, model, tmp_path):
    values = {**TrainConfig.from_yaml(run / "config.yaml").to_mapping(), "model": model}
    (run / "config.yaml").write_text(TrainConfig.from_mapping(values).to_yaml())
    with pytest.raises(UsageError, match="which code to run"):
        load_run(run)


class Payload:
    def __reduce__(self):
        return exec, (f"import pathlib; pathlib.Path({str(RAN)!r}).write_text('ran')",)


@pytest.mark.parametrize("model", ["test_resnet", "timm:test_resnet"])
def test_arguments_of_a_librarys_network_cannot_name_files_to_unpickle(run, model, tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Payload()))
    values = TrainConfig.from_yaml(run / "config.yaml").to_mapping()
    values |= {"model": model, "model_kwargs": {"checkpoint_path": str(tmp_path / "w.pth")}}
    (run / "config.yaml").write_text(TrainConfig.from_mapping(values).to_yaml())
    for load in (lambda: load_run(run), lambda: load_teacher(str(run))):
        with pytest.raises(UsageError, match="checkpoint_path"):
            load()
    assert not RAN.exists()


@pytest.mark.parametrize("options", [{"layers": "many"}, {"layers": []}, {"block": "x"}, {"x": 1}])
def test_arguments_that_make_no_network_are_one_line(run, options):
    values = TrainConfig.from_yaml(run / "config.yaml").to_mapping()
    values |= {"model": "resnet18", "model_kwargs": options}
    (run / "config.yaml").write_text(TrainConfig.from_mapping(values).to_yaml())
    with pytest.raises(UsageError, match=r"cannot be built with|does not take") as caught:
        load_run(run)
    assert "\n" not in str(caught.value)


def bomb() -> str:
    """Ten levels of ten names each: ten billion values in 500 bytes."""
    lines = ["a0: &a0 [x]"]
    for level in range(1, 11):
        names = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{names}]")
    return "\n".join([*lines, "model_kwargs: {layers: *a10}", ""])


CONFIGS = {
    "aliases": bomb(),
    "deep": "model_kwargs: " + "[" * 600,
    "a number of many digits": "epochs: " + "9" * 10_000,
    "twice": "epochs: 4\nlr: 0.1\nlr: 0.2",
    "no such day": "label_set: 2026-99-99",
    "not UTF-8": b"model: \xff\xfe".decode("latin-1"),
    "no mapping": "[model, resnet18]",
    "empty": "",
    "large": "model: " + "x" * 5_000_000,
}


@pytest.mark.sample(7)
@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_that_are_no_runs_are_one_line_wherever_they_are_read(run, kind, capsys):
    encoding = "latin-1" if kind == "not UTF-8" else "utf-8"
    (run / "config.yaml").write_text(CONFIGS[kind], encoding=encoding)
    readers = (
        lambda: load_run(run),
        lambda: load_teacher(str(run)),
        lambda: TrainConfig.from_yaml(run / "config.yaml"),
        lambda: write_report([run], run / "page.html"),
    )
    for read in readers:
        with pytest.raises(RejectedInput) as caught:
            read()
        assert len(str(caught.value)) < 1000
        assert "\n" not in str(caught.value)
    for name, arguments in COMMANDS.items():
        code, _, err = command(capsys, name, *arguments)
        assert (code, len(err.splitlines())) == (7, 1), (name, err)


def test_a_function_of_the_current_folder_is_found_only_where_the_command_line_names_it(
    run, tmp_path, monkeypatch, capsys
):
    """As an installed program is started: its own folder is on sys.path, the current one is not."""
    (tmp_path / "networks_of_mine.py").write_text(
        "from torch import nn\n"
        "def small(num_classes):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))\n"
    )
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    name = "networks_of_mine:small"
    values = {**TrainConfig.from_yaml(run / "config.yaml").to_mapping(), "model": name}
    (tmp_path / "named.yaml").write_text(TrainConfig.from_mapping(values).to_yaml())
    options = ["--batch-size", 4, "--workers", 1, "--device", "cpu", "--epochs", 4]
    code, _, err = command(capsys, "run", "-c", tmp_path / "named.yaml", *options)
    assert code == 2
    assert "No module named" in err
    code, _, err = command(capsys, "run", "-c", "named.yaml", *options, "--model", name)
    assert code == 0, err
    (run / "config.yaml").write_text((tmp_path / "named.yaml").read_text())
    code, _, err = command(capsys, "evaluate", run, "--model", name, "--device", "cpu")
    assert code == 0, err
