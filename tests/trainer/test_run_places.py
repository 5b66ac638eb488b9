"""Where runs write and what they are evaluated on; values that no run can have; what is refused before any work."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from cli import errors, trainer_app
from labelstore import MarginalSmoothing
from labelstore.errors import ConflictError, UsageError
from labelstore.testing.filled_store import filled_store
from tests.generation.conftest import CLASSES, OPTIONS, write_photographs, write_teacher
from trainer.attention.picture import image_folders
from trainer.checkpoint import RunFolder
from trainer.checkpoint.run_folder import FILES
from trainer.config import TrainConfig, evaluation_split
from trainer.training_data import open_training_data

CONFIG = TrainConfig(labels="ground-truth", num_classes=3, provenance={"versions": {}})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set with the splits train and validation."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "validation"):
        write_photographs(folder / split, per_class=1)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    run = write_teacher(tmp_path_factory.mktemp("runs") / "teacher", classes=CLASSES)
    with (run / "config.yaml").open("a") as config:
        config.write("labels: ground-truth\n")
    return run


@pytest.fixture
def run(capsys):
    def call(*words):
        code = errors.run(trainer_app.commands, "trainer", [str(word) for word in words])
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_of_no_run_are_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine: yes")
    for resume in (False, True):
        with pytest.raises(ConflictError, match=f"holds {name}, which is of no run"):
            RunFolder(tmp_path).start(dataclasses.replace(CONFIG, resume=resume))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "mine: yes")]


def test_a_run_that_was_stopped_early_begins_again(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.start(CONFIG) is None
    folder.log("began")
    folder.add_summary({"pass": 0, "loss": 1.0})
    assert folder.start(CONFIG) is None


def test_a_folder_of_other_things_may_be_a_runs(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert RunFolder(tmp_path).start(CONFIG) is None


def test_no_run_is_written_into_a_store(tmp_path):
    probs = np.full((2, 2, 3), 1 / 3, np.float32)
    filled_store(tmp_path / "s", probs, MarginalSmoothing(k=2)).close()
    before = sorted(tmp_path.rglob("*"))
    for path in (tmp_path / "s", tmp_path / "s" / "runs" / "one"):
        with pytest.raises(UsageError, match="give a path outside"):
            RunFolder(path).start(CONFIG)
    assert sorted(tmp_path.rglob("*")) == before


def test_validation_is_val(data, tmp_path):
    assert evaluation_split(data) == data / "validation"
    (tmp_path / "validation").mkdir()
    (tmp_path / "val").mkdir()
    assert evaluation_split(tmp_path) == tmp_path / "val"
    assert evaluation_split(tmp_path / "none") == tmp_path / "none" / "val"
    config = dataclasses.replace(CONFIG, data=data, workers=1)
    assert image_folders([config]) == [data / "validation", data / "train"]
    notes = []
    with open_training_data(config, note=notes.append) as opened:
        assert opened.val == data / "validation"
    assert notes == []


def test_a_run_that_nothing_is_evaluated_on_says_so(data):
    notes = []
    config = dataclasses.replace(CONFIG, data=data / "train", workers=1)
    with open_training_data(config, note=notes.append) as opened:
        assert opened.val is None
    assert len(notes) == 1
    assert "neither val nor validation in it" in notes[0]


def test_evaluate_takes_validation_too(run, data, teacher):
    code, out, _ = run("evaluate", teacher, "--data", data, "--device", "cpu", "--json")
    assert (code, json.loads(out)["images"]) == (0, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 10**22),
        ("workers", 100_000),
        ("temperature", 1e308),
        ("temperature", 1e-308),
        ("lr", float("inf")),
        ("clip_grad", float("inf")),
        ("min_lr", float("nan")),
        ("betas", (0.9, float("nan"))),
        ("batch_size", 10**12),
        ("input_size", 10**9),
        ("seed", 2**70),
    ],
)
def test_values_that_no_run_can_have(name, value):
    with pytest.raises(UsageError, match=f"^{name}="):
        dataclasses.replace(
            CONFIG, **({"labels": "teacher"} if name == "temperature" else {}), **{name: value}
        )


@pytest.mark.parametrize("which", ["real", "v2"])
def test_labels_that_do_not_match_are_refused_before_the_evaluation(
    run, data, teacher, tmp_path, monkeypatch, which
):
    monkeypatch.setattr("trainer.evaluation.evaluate", lambda *_, **__: pytest.fail("evaluated"))
    (tmp_path / "real.json").write_text("no JSON")
    (tmp_path / "v2" / "dog").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "v2" / "dog" / "0.png")
    path = tmp_path / ("real.json" if which == "real" else "v2")
    words = ("evaluate", teacher, "--data", data, "--device", "cpu", f"--{which}", path)
    code, _, message = run(*words)
    assert code in (2, 7)
    assert message.count("\n") == 1


def test_safetensors_come_with_all_their_arguments(run, teacher, tmp_path):
    out = tmp_path / "w.safetensors"
    code, text, _ = run("export", teacher, "--format", "safetensors", "--out", out, "--json")
    assert code == 0
    assert json.loads(text)["arguments"] == {**OPTIONS, "num_classes": 3}
    code, _, message = run(
        "export", teacher, "--format", "safetensors", "--out", tmp_path / "w.pth"
    )
    assert (code, "ends with .safetensors" in message) == (2, True)
    assert not (tmp_path / "w.pth").exists()


def test_what_is_no_model_is_named(run, data, tmp_path):
    (tmp_path / "exf").write_text("")
    code, _, message = run("evaluate", tmp_path / "exf", "--data", data)
    assert (code, f"{tmp_path / 'exf'} lies in no run folder" in message) == (7, True)
    code, _, message = run("evaluate", "nope", "--data", data)
    assert (code, "no file or folder nope is there" in message) == (2, True)


def test_nothing_to_resume_is_said_first(run, tmp_path):
    code, _, message = run("run", "--resume", "--output", tmp_path / "none")
    assert (code, f"{tmp_path / 'none'} holds no run to resume" in message) == (2, True)
    assert not (tmp_path / "none").exists()
