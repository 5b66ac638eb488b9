"""Grad-CAM and guided backpropagation: equal to their formulas, high where the class is, one picture for many runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from cli import errors, trainer_app
from labelstore.errors import RejectedInput, UsageError
from tests.generation.conftest import write_photographs, write_teacher
from trainer import TrainConfig
from trainer.attention import attend, draw_attention, find_image, image_folders
from trainer.attention.feature_maps import feature_maps, plain_copy
from trainer.attention.picture import Looked, enlarged
from trainer.models import Normalise

CONFIG = TrainConfig(labels="ground-truth", model="resnet18", mean=(0, 0, 0), std=(1, 1, 1))


class Colours(nn.Module):
    """Class c is how much of the image is brighter than a half in colour c; any layout of the map."""

    def __init__(self, layout="channels-first"):
        super().__init__()
        self.detect = nn.Conv2d(3, 3, 1)
        self.detect.weight.data = torch.eye(3)[..., None, None]
        self.detect.bias.data.fill_(-0.5)
        self.layout, self.act, self.pool, self.end = layout, nn.ReLU(inplace=True), nn.AvgPool2d(4), nn.Identity()  # fmt: skip

    def forward(self, x):
        x = self.pool(self.act(self.detect(x)))
        if self.layout == "channels-last":
            return self.end(x.permute(0, 2, 3, 1)).mean((1, 2))
        if self.layout == "tokens":
            tokens = x.flatten(2).transpose(1, 2)
            return self.end(torch.cat([0 * tokens[:, :1], tokens], 1))[:, 1:].mean(1)
        return self.end(x).mean((2, 3))


def patched(top, left, colour, size=16):
    crop = torch.zeros(3, size, size, dtype=torch.uint8)
    crop[colour, top : top + 4, left : left + 4] = 255
    return crop


@pytest.mark.parametrize("layout", ["channels-first", "channels-last", "tokens"])
@pytest.mark.parametrize(("top", "left"), [(0, 0), (4, 8), (12, 12)])
def test_maps_are_highest_where_the_class_is(layout, top, left):
    model = Colours(layout)
    # red elsewhere, green here: what speaks for green is here
    crop = patched((top + 8) % 16, left, 0) + patched(top, left, 1)
    found = attend(model, crop, CONFIG, class_id=1)
    assert (found.feature_map.layer, found.feature_map.layout) == ("end", layout)
    expected = np.zeros((4, 4), bool)
    expected[top // 4, left // 4] = True
    np.testing.assert_array_equal(found.cam > 0, expected)
    pixels = np.zeros((16, 16, 3), bool)
    pixels[top : top + 4, left : left + 4, 1] = True
    np.testing.assert_array_equal(found.guided != 0, pixels)
    assert attend(model, crop, CONFIG, class_id=2).cam.max() == 0


def random_network(seed=0):
    torch.manual_seed(seed)
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8}
    return timm.create_model("resnet18", num_classes=5, **options).eval()


def test_grad_cam_is_its_formula_and_captums():
    from captum.attr import GuidedBackprop, LayerGradCam

    model, crop = random_network(), torch.randint(0, 256, (3, 96, 96)).byte()
    before = copy.deepcopy(model.state_dict())
    found = attend(model, crop, CONFIG, layer="layer3", class_id=2)
    x = Normalise(CONFIG.mean, CONFIG.std)(crop[None])
    kept = {}
    with_hook = plain_copy(model)
    with_hook.layer3.register_forward_hook(lambda m, i, o: kept.update(out=o))
    score = with_hook(x.clone().requires_grad_())[0, 2]
    (gradient,) = torch.autograd.grad(score, kept["out"])
    by_hand = (gradient.mean((2, 3), keepdim=True) * kept["out"]).sum(1).relu()[0]
    np.testing.assert_allclose(found.cam, by_hand.detach(), rtol=1e-5, atol=1e-9)
    bare = plain_copy(model)
    theirs = LayerGradCam(bare, bare.layer3).attribute(x, target=2, relu_attributions=True)
    np.testing.assert_allclose(found.cam, theirs[0, 0].detach(), rtol=1e-5, atol=1e-9)
    with pytest.warns(UserWarning, match="hooks"):
        guided = GuidedBackprop(bare).attribute(x.requires_grad_(), target=2)
    np.testing.assert_array_equal(found.guided, guided[0].permute(1, 2, 0))
    # the network itself is as it was
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    assert model.act1.inplace


class Rectified(nn.Module):
    """Two convolutions with a rectifier between them, as a layer or as a function."""

    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.act = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), act

    def forward(self, x):
        return self.last(self.act(self.first(x))).mean((2, 3))


def by_hand(model, x, class_id, top):
    """The guided gradient of `Rectified`, one layer after the other."""
    before = model.first(x)
    after = before.clamp(0, top).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.last(after).mean((2, 3))[0, class_id], after)
    passed = gradient.relu() * ((before > 0) & (before < top))
    return torch.autograd.grad(before, x, passed)[0]


@pytest.mark.parametrize(
    ("act", "top"),
    [
        (nn.ReLU(inplace=True), torch.inf),
        (nn.ReLU6(inplace=True), 6),
        (nn.Hardtanh(0, 3), 3),
        (torch.relu, torch.inf),
        (torch.Tensor.relu, torch.inf),
        (lambda x: torch.nn.functional.relu(x, inplace=True), torch.inf),
        (lambda x: x.clone().relu_(), torch.inf),
        (lambda x: torch.nn.functional.hardtanh(x, max_val=6.0, min_val=0.0), 6),
        (torch.nn.functional.relu6, 6),
    ],
)
def test_every_rectifier_is_guided(act, top):
    """Layers and functions, cut off at the top or not: the gradient passes on the slope, where it is positive."""
    model = Rectified(act).eval()
    with torch.no_grad():
        # some values beyond any top
        model.first.weight *= 10
    found = attend(model, (crop := torch.randint(0, 256, (3, 12, 12)).byte()), CONFIG, class_id=1)
    x = Normalise(CONFIG.mean, CONFIG.std)(crop[None]).requires_grad_()
    expected = by_hand(model, x, 1, top)[0].permute(1, 2, 0).detach()
    np.testing.assert_allclose(found.guided, expected, rtol=1e-5, atol=1e-6)
    assert (found.rectifiers, found.others) == (1, ())
    plain = torch.autograd.grad(model(x.detach().requires_grad_())[0, 1], model.first.weight)
    assert plain[0].abs().max() > 0  # outside, the network's own gradient is untouched


@pytest.mark.parametrize(
    ("name", "rectifiers", "others", "words"),
    [
        ("tf_efficientnet_lite0", True, (), "guided backpropagation"),
        ("mobilenetv3_small_050", True, ("Hardswish",), "guided backpropagation, Hardswish plain"),
        ("efficientnet_b0", False, ("SiLU",), "gradient (SiLU is no ReLU)"),
    ],
)
def test_the_picture_names_what_is_not_guided(name, rectifiers, others, words):
    """EfficientNet-Lite has ReLU6 alone; where others are, their gradient is the plain one, and it is said."""
    model = timm.create_model(name, num_classes=3).eval()
    found = attend(model, torch.randint(0, 256, (3, 64, 64)).byte(), CONFIG)
    assert (found.rectifiers > 0, found.others) == (rectifiers, others)
    looked = Looked(network=name, crop=np.zeros((64, 64, 3), np.uint8), attention=found)
    figure = draw_attention([("a", looked.crop)], [[looked]])
    assert words in [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("networks", [1, 2, 4])
def test_no_words_are_cut_off(networks):
    found = attend(Colours(), patched(0, 0, 0), CONFIG, class_id=0)
    looked = Looked(
        network="runs/tf_efficientnet_lite0.in1k-seed" * 3,
        crop=np.zeros((16, 16, 3), np.uint8),
        attention=found,
    )
    figure = draw_attention([("i" * 99, looked.crop)], [[looked] * networks])
    figure.canvas.draw()
    edges = figure.bbox
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= edges.x0, text
        assert box.x1 <= edges.x1, text
        assert box.y0 >= edges.y0, text


def test_tokens_are_reshaped_where_they_still_count():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **options).eval()
    crop = torch.randint(0, 256, (3, 32, 32)).byte()
    found = attend(model, crop, CONFIG, class_id=3)
    # later patch tokens reach no class: only the class token is read
    assert found.feature_map.layer == "blocks.1.norm1"
    assert (found.rectifiers, found.others) == (0, ("GELU",))
    kept = {}
    hooked = plain_copy(model)
    hooked.blocks[1].norm1.register_forward_hook(lambda m, i, o: kept.update(out=o))
    x = Normalise(CONFIG.mean, CONFIG.std)(crop[None])
    (gradient,) = torch.autograd.grad(hooked(x)[0, 3], kept["out"])
    patches, weights = kept["out"][0, 1:], gradient[0, 1:].mean(0)
    by_hand = (patches * weights).sum(1).relu().reshape(4, 4)
    np.testing.assert_allclose(found.cam, by_hand.detach(), rtol=1e-4, atol=1e-8)


def test_the_last_map_is_found():
    x = torch.rand(1, 3, 64, 64)
    for name, last in (("resnet18", "layer4"), ("convnext_atto", "norm_pre"), ("mobilenetv3_small_050", "blocks")):  # fmt: skip
        maps = feature_maps(plain_copy(timm.create_model(name, num_classes=3)), x, 1)
        assert maps[-1].layer == last
        assert (maps[-1].height, maps[-1].width) == (2, 2)
    # at 32 pixels the last map has one place, which says nothing
    assert feature_maps(plain_copy(random_network()), x[..., :32, :32], 1)[-1].layer == "layer3"


def test_refused():
    model, crop = random_network(), torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(UsageError, match=r"layer9.*these work: .*layer4"):
        attend(model, crop, CONFIG, layer="layer9")
    for number in (5, -1):
        with pytest.raises(UsageError, match="5 classes"):
            attend(model, crop, CONFIG, class_id=number)
    with pytest.raises(UsageError, match="map of the image"):
        attend(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), crop[:, :4, :4], CONFIG)
    torch.nn.init.constant_(model.fc.bias, float("nan"))
    with pytest.raises(RejectedInput, match="not finite"):
        attend(model, crop, CONFIG)


def test_bilinear_keeps_a_constant_and_the_peak():
    np.testing.assert_allclose(enlarged(np.full((3, 3), 0.7, np.float32), 9), 0.7, rtol=1e-6)
    peak = enlarged(np.float32([[0, 0], [0, 1]]), 8)
    assert peak[-1, -1] == peak.max() == 1
    assert peak[0, 0] == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("attention")
    write_photographs(root / "data" / "val", per_class=1)
    for seed, name in enumerate(("one", "two $x$ <b>")):
        write_teacher(root / name, seed=seed)
        with (root / name / "config.yaml").open("a") as config:
            config.write(f"labels: ground-truth\ndata: {(root / 'data').as_posix()}\n")
    return root


def trainer_attention(*arguments):
    words = ["attention", *map(str, arguments), "--device", "cpu"]
    return errors.run(trainer_app.commands, "trainer", words)


@pytest.mark.slow
def test_command_draws_and_tells(data, tmp_path, capsys):
    runs, out = [data / "one", data / "two $x$ <b>"], tmp_path / "a.png"
    file = data / "data" / "val" / "dog" / "0.jpg"
    arguments = [*runs, "--image", "cat/0.jpg", "--image", file, "--input-size", "64", "--out", out]
    assert trainer_attention(*arguments, "--dry-run", "--json") == 0
    dry = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert trainer_attention(*arguments, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["images"] == dry["images"]
    assert [row["network"] for row in record["images"][0]["networks"]] == ["one", "two $x$ <b>"]
    with Image.open(out) as picture:
        assert picture.width > picture.height > 300
    assert trainer_attention(*arguments, "--class", "cat") == 0
    told = capsys.readouterr()
    assert told.out == f"wrote {out}\n"
    assert told.err.count(": cat 0.") == 4
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_weights_of_a_network_by_name(data, tmp_path, capsys):
    """One name with two files is two networks, told apart by their files."""
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = timm.create_model("mobilenetv3_small_050", num_classes=3)
        files.append(tmp_path / f"w{seed}.pth")
        torch.save(model.state_dict(), files[-1])
    image = data / "data" / "val" / "dog" / "0.jpg"
    arguments = ["--image", image, "--input-size", "64", "--out", tmp_path / "a.png", "--json"]
    named = ["timm:mobilenetv3_small_050"] * 2
    weights = [word for file in files for word in ("--checkpoint", file)]
    assert trainer_attention(data / "one", *named, *weights, *arguments, "--dry-run") == 0
    first, *rows = json.loads(capsys.readouterr().out)["images"][0]["networks"]
    assert [first["network"], *(row["network"] for row in rows)] == ["one", "w0.pth", "w1.pth"]
    assert rows[0]["probability"] != rows[1]["probability"]
    assert rows[0]["other_activations"] == ["Hardswish"]
    for runs in ((data / "one",), named[:1]):
        assert trainer_attention(*runs, *weights, *arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--class", "cow"], 2),
        (["--class", "99"], 2),
        (["--layer", "fc"], 2),
        (["--out", "a.txt"], 2),
        (["--image", "../val/cat/0.jpg"], 7),
        (["--image", "cat/99.jpg"], 7),
        (["--image", "a" * 5000], 7),
        (["--image", "a\0b"], 7),
        (["--input-size", "100000"], 2),
    ],
)
def test_command_refuses_in_one_line(data, tmp_path, capsys, monkeypatch, more, code):
    monkeypatch.chdir(tmp_path)
    arguments = ["--image", "cat/0.jpg", "--input-size", "32", *more]
    assert trainer_attention(data / "one", *arguments) == code
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["cow", "99"])
def test_a_class_that_is_none_is_told_which_there_are(data, tmp_path, capsys, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    arguments = ["--image", "cat/0.jpg", "--input-size", "32", "--class", given]
    assert trainer_attention(data / "one", *arguments) == 2
    told = capsys.readouterr().err
    assert "0 to 2" in told
    assert given == "99" or "'cat'" in told


def test_no_run_no_weights(data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes((data / "one" / "config.yaml").read_bytes())
    for run, code in (("empty", 7), ("run", 7), ("none/model.safetensors", 2)):
        assert trainer_attention(tmp_path / run, "--image", data / "data/val/cat/0.jpg") == code
        assert capsys.readouterr().err.count("\n") == 1


def test_where_images_are_looked_for(data, tmp_path):
    config = TrainConfig(labels="ground-truth", data=data / "data", train=tmp_path)
    folders = image_folders([config, CONFIG, config])
    assert folders == [data / "data" / "val", tmp_path]
    assert find_image("dog/0.jpg", folders) == data / "data" / "val" / "dog" / "0.jpg"
    listed = tmp_path / "list.csv"
    listed.write_text("path,class\ndog/0.jpg,dog\n")
    found = find_image("dog/0.jpg", [tmp_path / "gone", Path(f"{listed}:{folders[0]}")])
    assert found.read_bytes() == (data / "data/val/dog/0.jpg").read_bytes()


def test_a_map_of_nothing_is_drawn():
    found = attend(Colours(), patched(0, 0, 0), CONFIG, class_id=2)
    looked = Looked(network="n" * 99, crop=np.zeros((16, 16, 3), np.uint8), attention=found)
    figure = draw_attention([("$" * 99, looked.crop)], [[looked]])
    figure.canvas.draw()
    assert any("nothing" in text.get_text() for axes in figure.axes for text in axes.texts)
