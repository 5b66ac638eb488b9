"""The demo's settings files are settings, and every student of the demo sees as many crops."""

from pathlib import Path

import pytest
import yaml

from benchmarks import demo
from trainer.config import TrainConfig


def settings(name):
    path = Path(demo.__file__).with_name(name)
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", ["demo_student.yaml", "demo_teacher.yaml"])
def test_the_demo_s_settings_make_a_run(name):
    config = TrainConfig.from_mapping({"data": "images", "store": "a.labels", **settings(name)})
    assert config.crops_per_image == 4
    assert (config.epochs == demo.EPOCHS) == (name == "demo_student.yaml")


@pytest.mark.parametrize("student", demo.STUDENTS, ids=lambda s: f"{s.method}-{s.crops_per_image}")
def test_a_student_s_command_says_how_many_crops_of_an_image(student):
    command = demo.student_command(
        student, folder=Path("images"), store=Path("a.labels"), run=Path("run"), seed=3
    )
    said = "--crops-per-image 1" in command
    assert student.crops_per_image == (
        1 if said else settings("demo_student.yaml")["crops_per_image"]
    )
