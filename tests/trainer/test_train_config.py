import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from labelstore.errors import RejectedInput, UsageError
from trainer.config import TrainConfig, without_filled_in


def plain(**changes):
    return TrainConfig(**{"labels": "ground-truth", **changes})


def test_yaml_round_trip_keeps_every_field(tmp_path):
    config = TrainConfig(
        store=Path("in1k.labels"),
        labels="ferkd",
        mask="ferkd",
        model="vit_small_patch16_224",
        model_kwargs={"drop_path_rate": 0.1},
        num_classes=3,
        class_names=("cat", "dög", "on"),
        milestones=(30, 60),
        lr=1e-5,
        provenance={"uuid": "ab", "digests": [1, 2]},
    )
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert TrainConfig.from_yaml(path) == config


def test_yaml_has_what_a_teacher_needs_as_flat_plain_values():
    values = yaml.safe_load(plain(num_classes=2, class_names=["a", "b"]).to_yaml())
    for name in ("model", "model_kwargs", "num_classes", "input_size", "mean", "std"):
        assert name in values
    assert values["class_names"] == ["a", "b"]
    assert values["interpolation"] == "bilinear"
    assert values["crop_pct"] == 0.875
    assert values["num_classes"] == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch_size": 1022}, "multiple of crops_per_image=4, e.g. 1024"),
        ({"epochs": 0}, "epochs=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"labels": "fkd"}, "without a store"),
        ({"labels": "ferkd", "store": Path("s")}, "without a mask"),
        ({"mask": "m"}, "masks belong"),
        ({"temperature": 4.0}, "temperature"),
        ({"mixing": "selfmix", "crops_per_image": 1}, "nothing to mix"),
        ({"scale": (0.5, 0.1)}, "scale"),
        ({"warmup_epochs": 300.0}, "less than epochs=300"),
        ({"scheduler": "multistep"}, "milestones"),
        ({"num_classes": 3, "class_names": ("a", "b")}, "class_names"),
        ({"std": (0.1, 0.0, 0.1)}, "std"),
        ({"model_kwargs": {"num_classes": 5}}, "follows from the labels"),
        ({"workers": 0}, "workers"),
        ({"blur_sigma": (2.0, 0.1)}, "blur_sigma"),
        ({"blur_sigma": (0.0, 0.1)}, "blur_sigma"),
        ({"grayscale_prob": 1.5}, "grayscale_prob"),
        ({"lighting": -0.1}, "lighting"),
        ({"mixing_off_epochs": -1}, "mixing_off_epochs"),
        ({"warmup_serrated": True, "serrated": False}, "warmup_serrated"),
        ({"discriminator": True}, "discriminator with labels='ground-truth'"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_in_one_line(changes, expected):
    with pytest.raises(UsageError, match=expected) as caught:
        TrainConfig(**{"labels": "ground-truth", **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labels": "grount-truth", "store": "s"}, "labels='grount-truth': .*'ground-truth'"),
        ({"soft_loss": "KL"}, "soft_loss='KL': .*'kl'"),
        ({"mixing": "self-mix"}, "'selfmix'"),
        ({"scheduler": "cosin"}, "'cosine'"),
        ({"amp": "fp32"}, "'bf16'"),
        ({"optimizer": "sdg"}, "'sgd'"),
        ({"order": "easy"}, "'easy-to-hard'"),
        ({"loggers": ("wandb", "x")}, "loggers="),
        ({"loggers": "wandb"}, "loggers='wandb'"),
        ({"epochs": "many"}, "epochs='many'"),
        ({"epochs": 2.5}, "epochs=2.5"),
        ({"epochs": float("nan")}, "epochs=nan"),
        ({"lr": None}, "lr=None"),
        ({"scale": (0.1,)}, "more values than 1"),
        ({"scale": (0.1, 0.2, 0.3)}, "scale="),
        ({"model": None}, "model=None"),
        ({"data": 3}, "data=3"),
        ({"model_kwargs": [1]}, "model_kwargs="),
        ({"mean": "\n".join("x" * 10_000)}, "mean="),
    ],
)
def test_types_and_choices_are_checked_in_python_too(changes, expected):
    with pytest.raises(UsageError, match=expected) as caught:
        plain(**changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    if "labels" not in changes:
        with pytest.raises(UsageError, match=expected):
            dataclasses.replace(plain(), **changes)


def test_values_are_what_the_fields_say_however_they_were_written():
    config = plain(epochs="8", lr="1e-5", betas=[0.5, 0.9], data="d", serrated="no")
    assert config == plain(epochs=8, lr=1e-5, betas=(0.5, 0.9), data=Path("d"), serrated=False)
    assert isinstance(config.betas, tuple)
    assert isinstance(plain(epochs=np.int64(8), lr=np.float32(0.5)).epochs, int)


def test_what_a_run_filled_in_is_left_out_for_another():
    settings = plain(lr=0.3).to_mapping()
    filled = {"num_classes": 2, "class_names": ["a", "b"], "provenance": {"images": 3}}
    filled |= {"resume": True, "output": "run"}
    settings["output"] = "run"
    assert TrainConfig.from_mapping(settings | filled).for_another_run() == plain(
        lr=0.3, output="run"
    )
    asked = {"num_classes": 2}
    assert without_filled_in(asked) == asked


def test_mapping_refuses_unknown_names_and_wrong_types():
    with pytest.raises(UsageError, match="did you mean batch_size"):
        TrainConfig.from_mapping({"labels": "ground-truth", "batchsize": 3})
    with pytest.raises(UsageError, match="epochs='many'"):
        TrainConfig.from_mapping({"labels": "ground-truth", "epochs": "many"})
    with pytest.raises(UsageError, match="amp='fp8'"):
        TrainConfig.from_mapping({"labels": "ground-truth", "amp": "fp8"})


def test_yaml_floats_without_a_dot_are_floats(tmp_path):
    # YAML 1.1 reads 1e-5 as text
    path = tmp_path / "config.yaml"
    path.write_text("labels: ground-truth\nlr: 1e-5\n")
    assert TrainConfig.from_yaml(path).lr == 1e-5


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00", ""])
def test_files_that_are_no_config_are_rejected(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(RejectedInput) as caught:
        TrainConfig.from_yaml(path)
    assert "\n" not in str(caught.value)


@given(st.integers(5, 400), st.integers(1, 9), st.integers(0, 2), st.integers(0, 2))
def test_passes_cover_the_epochs_and_no_more(epochs, m, first, last):
    config = plain(
        epochs=epochs,
        crops_per_image=m,
        batch_size=m,
        single_crop_first=first,
        single_crop_last=last,
    )
    assert epochs <= config.whole_epochs < epochs + m
    assert config.whole_epochs == first + config.multi_crop_passes * m + last


@pytest.mark.parametrize(
    ("ignored", "advice"),
    [
        ({"label_smoothing": 0.1}, "leave it at 0.0"),
    ],
)
def test_what_stored_labels_ignore_is_refused(ignored, advice):
    stored = {"labels": "fkd", "store": "s"}
    with pytest.raises(UsageError) as caught:
        plain(**stored, **ignored)
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)
    # a file that lists every setting
    usual = plain(**stored)
    assert TrainConfig.from_mapping(usual.to_mapping()) == usual
    # the ground truth is made with all of them
    plain(**ignored)
    plain(labels="teacher", teacher="timm:resnet18", ground_truth_weight=0.5, **ignored)
    if "label_smoothing" in ignored:
        plain(**stored, ground_truth_weight=0.5, **ignored)


def test_differences_name_what_changes_the_weights():
    config = plain()
    elsewhere = dataclasses.replace(config, workers=9, output=Path("x"), resume=True, device="cpu")
    assert config.differences(elsewhere) == ()
    assert config.differences(dataclasses.replace(config, lr=0.2, seed=1)) == ("lr", "seed")
    one, two = (plain(provenance={"images": 21, **more}) for more in ({}, {"num_crops": 6}))
    assert one.differences(two) == two.differences(one) == ()
    other = plain(provenance={"images": 22, "num_crops": 6, "versions": {"torch": "9"}})
    assert two.differences(other) == ("provenance.images",)


def test_a_config_read_back_has_no_differences():
    config = plain(provenance={"mask": {"quantiles": (0.1, 0.2)}}, model_kwargs={"layers": (2, 2)})
    assert config.differences(TrainConfig.from_mapping(config.to_mapping())) == ()
