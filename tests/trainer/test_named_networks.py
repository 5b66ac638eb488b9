"""Networks by name: measured with their own classes and settings, fine-tuned with others', exported for others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from torchvision import models

import trainer
from cli import errors, trainer_app
from labelstore.cropping.replay import centre_crop, read_image
from labelstore.errors import ConflictError, RejectedInput, UsageError
from labelstore.teachers.class_map import wordnet_ids
from labelstore.teachers.named_networks import build
from trainer import TrainConfig
from trainer.models import Normalise, create_model, load_named, load_run
from trainer.weight_export import export_weights

WNIDS = ("n01440764", "n01443537", "n07749582")
"""Outputs 0, 1 and 951 of a network of ImageNet."""
SHUFFLE, SQUEEZE = "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1"
SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Torchvision's cache with files of the right names: whatever is in them is what "pretrained" means here."""
    home = tmp_path_factory.mktemp("home")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    for name in (SHUFFLE, SQUEEZE):
        name = name.partition(":")[2]
        torch.manual_seed(3)
        url = models.get_model_weights(name).DEFAULT.url
        state = models.get_model(name, weights=None).state_dict()
        torch.save(state, home / "hub" / "checkpoints" / url.rpartition("/")[2])
    return home


@pytest.fixture
def pretrained(weights, monkeypatch):
    """Weights of a kind for timm too: those that seed 11 makes."""
    monkeypatch.setenv("TORCH_HOME", str(weights))
    original = timm.create_model

    def seeded(name, pretrained=False, **options):
        if pretrained:
            torch.manual_seed(11)
        return original(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", seeded)
    monkeypatch.setattr(timm, "list_pretrained", lambda *_: ["test_resnet"])


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    root = tmp_path_factory.mktemp("val")
    rng = np.random.default_rng(0)
    for name in WNIDS:
        (root / name).mkdir()
        for number in range(2):
            pixels = rng.integers(0, 255, (30, 40, 3), np.uint8)
            Image.fromarray(pixels).resize((300, 260)).save(root / name / f"{number}.png")
    return root


def command(capsys, *arguments):
    code = errors.run(trainer_app.commands, "trainer", [str(each) for each in arguments])
    return code, *capsys.readouterr()


def by_hand(network, settings, val, outputs):
    """Mean cross-entropy of the images, one at a time."""
    normalise = Normalise(settings["mean"], settings["std"])
    found = []
    for path in sorted(val.glob("*/*.png")):
        crop = centre_crop(
            read_image(path), settings["size"], settings["crop_pct"], settings["interpolation"]
        )
        with torch.no_grad():
            logits = network.eval()(normalise(crop[None]))
        truth = torch.tensor([outputs[path.parent.name]])
        found.append(float(torch.nn.functional.cross_entropy(logits, truth)))
    return np.mean(found)


OUTPUTS = dict(zip(WNIDS, (0, 1, 951), strict=True))


def test_timms_networks_are_measured_with_their_own_classes_and_pixels(pretrained, val, capsys):
    code, out, err = command(
        capsys, "evaluate", "timm:test_resnet", "--val", val, "--device", "cpu", "--json"
    )
    assert code == 0, err
    network = timm.create_model("test_resnet", pretrained=True)
    data = resolve_model_data_config(network)
    settings = {**data, "size": data["input_size"][-1]}
    assert settings["size"] != 224
    expected = by_hand(network, settings, val, OUTPUTS)
    assert json.loads(out)["loss"] == pytest.approx(expected, rel=1e-4)
    assert "1,000 outputs" in err
    assert f"{settings['size']} px" in err
    # a setting that is given counts more
    code, out, _ = command(
        capsys, "evaluate", "timm:test_resnet", "--val", val, "--device", "cpu", "--json",
        "--set", "interpolation=bicubic", "--set", "input_size=96",
    )  # fmt: skip
    settings |= {"interpolation": "bicubic", "size": 96}
    assert json.loads(out)["loss"] == pytest.approx(
        by_hand(network, settings, val, OUTPUTS), rel=1e-4
    )


def test_torchvisions_networks_are_measured_with_their_own_classes_and_pixels(
    pretrained, val, capsys
):
    code, out, err = command(capsys, "evaluate", SHUFFLE, "--val", val, "--device", "cpu", "--json")
    assert code == 0, err
    made = models.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    network = models.shufflenet_v2_x0_5(weights=made)
    wanted = {"mean": made.transforms().mean, "std": made.transforms().std, "size": 224}
    wanted |= {"crop_pct": 224 / 256, "interpolation": "bilinear"}
    assert json.loads(out)["loss"] == pytest.approx(by_hand(network, wanted, val, OUTPUTS), 1e-4)


def test_attention_shows_a_named_network_what_it_was_made_for(pretrained, val, tmp_path, capsys):
    image = next(val.glob("*/*.png"))
    given = ["timm:test_resnet", "--image", image, "--class", 951, "--device", "cpu"]
    code, out, err = command(
        capsys, "attention", *given, "--out", tmp_path / "a.png", "--dry-run", "--json"
    )
    assert code == 0, err
    assert "1,000 outputs; images at 160 px, crop 0.95, bilinear, mean 0.5,0.5,0.5" in err
    (found,) = json.loads(out)["images"][0]["networks"]
    assert found["class"] == "class 951"


def test_no_network_gets_a_random_classifier_in_the_place_of_its_own(pretrained, val, tmp_path):
    for name in ("timm:test_resnet", SQUEEZE):
        with pytest.raises(UsageError, match="has 1000 outputs"):
            load_named(name, settings={"num_classes": 3})
    for part in ("cat", "dog"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / part / "1.png")
    network, config = load_named("timm:test_resnet", classes=("cat", "dog"))
    assert (config.num_classes, config.class_names) == (1000, ())
    with pytest.raises(UsageError, match="2 classes, the network 1000"):
        trainer.evaluate(network, tmp_path, config)
    _, config = load_named("timm:test_resnet", classes=WNIDS)
    assert config.class_names == tuple(wordnet_ids(1000))


def test_a_checkpoint_says_how_many_classes_it_has(tmp_path):
    made = timm.create_model("test_resnet", num_classes=5)
    torch.save(made.state_dict(), tmp_path / "w.pth")
    network, config = load_named("test_resnet", checkpoint=tmp_path / "w.pth", classes=("a", "b"))
    assert config.num_classes == 5
    pixels = torch.rand(1, 3, 160, 160)
    torch.testing.assert_close(network(pixels), made.eval()(pixels))


def test_probe_takes_a_named_network_and_images_of_any_kind(pretrained, val, tmp_path, capsys):
    rows = [f"{path.relative_to(val)},{path.parent.name}" for path in sorted(val.glob("*/*.png"))]
    listed = tmp_path / "images.csv"
    listed.write_text("path,class\n" + "\n".join(rows) + "\n")
    given = ["--train", f"{listed}:{val}", "--val", val, "--input-size", 32, "--device", "cpu"]
    code, out, err = command(capsys, "probe", "timm:test_resnet", *given, "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == 6
    for wrong, expected in ((["--train", val], 2), (["--train", val, "--val", "/no/such"], 7)):
        code, _, err = command(capsys, "probe", "timm:test_resnet", *wrong)
        assert (code, len(err.splitlines())) == (expected, 1)


@pytest.mark.parametrize(("name", "new"), [(SHUFFLE, "fc"), (SQUEEZE, "classifier.1")])
def test_torchvisions_weights_are_fine_tuned_for_other_classes(pretrained, name, new):
    config = TrainConfig(
        labels="ground-truth", model=name, pretrained=True, num_classes=7, input_size=64
    )
    network = create_model(config)
    own = build(name, {}, pretrained=True).state_dict()
    state = network.state_dict()
    assert list(state) == list(own)
    for key in state:
        if key.startswith(new):
            assert state[key].shape[0] == 7
        else:
            assert torch.equal(state[key], own[key]), key
    again = create_model(config).state_dict()
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert torch.equal(
        build(name, {"num_classes": 1000}, pretrained=True).state_dict()[f"{new}.weight"],
        own[f"{new}.weight"],
    )


def test_a_fine_tuned_run_is_told_that_its_pixels_are_others(pretrained, val, tmp_path):
    notes: list[str] = []
    settings = TrainConfig(
        labels="ground-truth", train=val, model="test_resnet", pretrained=True, input_size=32,
        batch_size=4, epochs=4, workers=1, device="cpu",
    )  # fmt: skip
    trainer.run(settings, note=notes.append)
    told = [note for note in notes if "made for other pixels" in note]
    assert len(told) == 1
    assert "`mean=0.5,0.5,0.5` `std=0.5,0.5,0.5`" in told[0]
    notes.clear()
    import dataclasses

    own = dataclasses.replace(settings, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    trainer.run(own, note=notes.append)
    assert not [note for note in notes if "made for other pixels" in note]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, val) -> Path:
    """A run of a few steps with averaged weights."""
    output = tmp_path_factory.mktemp("runs") / "run"
    trainer.run(
        TrainConfig(
            labels="ground-truth", train=val, val=val, model="resnet18", model_kwargs=SMALL,
            input_size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), interpolation="bicubic",
            crop_pct=0.9, batch_size=4, epochs=4, lr=0.5, workers=1, device="cpu", ema_decay=0.5,
            output=output,
        )
    )  # fmt: skip
    return output


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["model", "ema"])
def test_a_folder_for_a_hub_is_loaded_by_timm_with_equal_outputs(finished, tmp_path, capsys, kind):
    out = tmp_path / "hub"
    arguments = ["export", finished, "--out", out, "--format", "hf", "--weights", kind]
    code, _, err = command(capsys, *arguments, "--dry-run", "--json")
    assert (code, out.exists()) == (0, False), err
    code, printed, err = command(capsys, *arguments, "--json")
    assert code == 0, err
    assert json.loads(printed)["format"] == "hf"
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    network = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    file = "model_ema.safetensors" if kind == "ema" else "model.safetensors"
    own, config = load_run(finished / file)
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(network(pixels), own(pixels))
    data = resolve_model_data_config(network)
    assert tuple(data["input_size"]) == (3, 32, 32)
    for name in ("mean", "std", "interpolation", "crop_pct"):
        own_value = getattr(config, name)
        assert data[name] == (list(own_value) if isinstance(own_value, tuple) else own_value), name
    assert network.pretrained_cfg["label_names"] == list(WNIDS)
    # as timm's own: other classes get another classifier, on the same features
    other = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=5).eval()
    assert torch.equal(other.forward_features(pixels), own.forward_features(pixels))
    code, _, err = command(capsys, *arguments)
    assert (code, len(err.splitlines())) == (5, 1)
    assert command(capsys, *arguments, "--overwrite")[0] == 0


def test_exports_that_cannot_be_are_one_line(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for more, expected in (
        (["--out", tmp_path / "file", "--format", "hf"], 2),
        (["--out", tmp_path / "x.safetensors", "--format", "hf"], 2),
        (["--out", tmp_path / "x", "--format", "hub"], 2),
        (["--out", tmp_path / "x", "--format", "hf", "--weights", "best"], 2),
    ):
        code, _, err = command(capsys, "export", finished, *more)
        assert (code, len(err.splitlines())) == (expected, 1), more
    assert command(
        capsys, "export", finished / "last.pth.tar", "--out", tmp_path / "x.pth", "--weights", "ema"
    )[0] == 2  # fmt: skip
    network, config = load_run(finished)
    other = TrainConfig.from_mapping({**config.to_mapping(), "model": "a.b:c"})
    with pytest.raises(UsageError, match="no timm network"):
        export_weights(network, other, tmp_path / "y", format="hf")
    export_weights(network, config, tmp_path / "y", format="hf")
    with pytest.raises(ConflictError, match=r"config\.json exists"):
        export_weights(network, config, tmp_path / "y", format="hf")
    (finished / "model_ema.safetensors").rename(tmp_path / "away")
    try:
        code, _, err = command(
            capsys,
            "export",
            finished,
            "--out",
            tmp_path / "z",
            "--format",
            "hf",
            "--weights",
            "ema",
        )
    finally:
        (tmp_path / "away").rename(finished / "model_ema.safetensors")
    assert (code, "ema" in err) == (RejectedInput.exit_code, True)


def test_another_run_starts_from_a_runs_config(finished, tmp_path, capsys):
    """Its classes and where its labels came from are not asked of the new run; a resumed one keeps them."""
    for name in ("a", "b"):
        (tmp_path / "other" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "other" / name / "1.png")
    config = finished / "config.yaml"
    given = ["--train", tmp_path / "other", "--val", "none", "--output", tmp_path / "run"]
    code, _, err = command(capsys, "run", "-c", config, *given)
    assert code == 0, err
    _, other = load_run(tmp_path / "run" / "last.pth.tar")
    assert (other.num_classes, other.class_names) == (2, ("a", "b"))
    _, before = load_run(finished)
    assert other.lr == before.lr
    code, out, _ = command(capsys, "run", "-c", config, "--resume", "--print-config", "--json")
    assert code == 0
    assert json.loads(out)["class_names"] == list(WNIDS)
    code, out, _ = command(capsys, "run", "-c", config, "--print-config", "--json")
    kept = json.loads(out)
    assert (kept["class_names"], kept["num_classes"], kept["provenance"]) == ([], None, {})
    code, _, err = command(capsys, "run", "-c", config, "--num-classes", 5, *given[:4])
    assert code == 2
    assert "--num-classes 5" in err
