"""What a library states is read from it: number of classes, layers, names, pixels; and which weights a file holds."""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._registry import _model_to_module
from torch import nn
from torchvision import models

from cli import errors, labelstore_app
from labelstore.errors import RejectedInput, UsageError
from labelstore.teachers.named_networks import build, classes_of, own_settings, settings_by_name
from labelstore.teachers.teacher import load_recorded_teacher, load_teacher
from labelstore.teachers.weights import read_weights

CLASSES = 7
TESTED = sorted(name for name in timm.list_models("test_*"))
"""timm's own small networks, one for each of its main families."""
SMALL = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
OTHERS = (
    "timm:efficientnet_lite0", "timm:mobilenetv3_small_050", "timm:lcnet_035", "timm:tinynet_e", "timm:ghostnet_050",
    "timm:repghostnet_050", "timm:mnasnet_small", "timm:fbnetc_100", "timm:mixnet_s", "timm:mobilenetv4_conv_small_035",
    "timm:ese_vovnet19b_slim", "timm:mobilenetv2_035", "timm:deit_tiny_distilled_patch16_224", "timm:resnetv2_18",
    "torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small", "torchvision:googlenet", "torchvision:alexnet",
)  # fmt: skip
"""With a convolution called conv_head, two heads, a convolution as classifier, auxiliary heads."""


def smallest_of_each_family():
    """The network of each of timm's modules that has the fewest weights among those with the shortest names."""
    families = defaultdict(list)
    for name in timm.list_models():
        families[_model_to_module[name]].append(name)
    small = ("tiny", "nano", "pico", "atto", "femto", "micro", "_s", "_t", "050", "18", "_b0")
    for family, names in sorted(families.items()):
        names.sort(key=lambda name: (not any(word in name for word in small), len(name), name))
        yield pytest.param(names[0], id=family)


def state_of(architecture):
    # torchvision warns of how it draws weights
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        return build(architecture, {"num_classes": CLASSES}, pretrained=False).state_dict()


def check_classes(architecture):
    state = state_of(architecture)
    for order in (state, dict(sorted(state.items())), dict(reversed(state.items()))):
        assert classes_of(architecture, {}, order) == CLASSES


@pytest.mark.sample(1)
@pytest.mark.parametrize("architecture", OTHERS)
def test_number_of_classes_does_not_depend_on_the_order_of_the_weights(architecture):
    check_classes(architecture)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(smallest_of_each_family()))
def test_number_of_classes_of_every_family(name):
    check_classes(f"timm:{name}")


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", TESTED)
def test_weights_in_any_order_give_the_same_outputs(name, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=CLASSES).eval()
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "ordered.pth")
    torch.save(dict(sorted(state.items())), tmp_path / "sorted.pth")
    save_file(state, tmp_path / "sorted.safetensors")
    size = own_settings(name, network)["input_size"]
    image = torch.rand(1, 3, size, size)
    with torch.inference_mode():
        expected = network(image)
        for file in sorted(tmp_path.iterdir()):
            teacher = load_teacher(str(file), architecture=name)
            assert teacher.row.num_classes == CLASSES
            assert torch.equal(teacher.module(image), expected)


def test_a_number_that_nothing_tells_is_none():
    state = {"weight": torch.zeros(3, 3)}
    assert classes_of("timm:test_resnet", {}, state) is None
    assert classes_of("timm:no_such_network", {}, state) is None


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "mobilenet_v3_small", "resnet18"])
def test_another_number_of_classes_replaces_the_classifiers_alone(name, monkeypatch):
    original, held = models.get_model, {}

    def without_download(name, weights=None, **options):
        torch.manual_seed(5)
        network = original(
            name, weights=None, **{"init_weights": False} if name == "googlenet" else {}, **options
        )
        if weights is not None:
            held.update(network.state_dict())
        return network

    monkeypatch.setattr(models, "get_model", without_download)
    network = build(f"torchvision:{name}", {"num_classes": CLASSES}, pretrained=True).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, CLASSES)
    changed = {key for key, value in network.state_dict().items() if held[key].shape != value.shape}
    assert changed
    assert all(held[key].shape[0] == 1000 for key in changed)
    kept = network.state_dict().keys() - changed
    assert all(torch.equal(network.state_dict()[key], held[key]) for key in kept)


WRAPPED = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=CLASSES).state_dict()


@pytest.mark.parametrize("prefix", WRAPPED)
def test_names_of_wrapped_networks_are_those_of_the_network(prefix, plain, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {prefix + name: value for name, value in plain.items()}}, path)
    teacher = load_teacher(str(path), architecture="timm:test_resnet")
    torch.save(plain, path)
    assert teacher.row.digest == load_teacher(str(path), architecture="timm:test_resnet").row.digest


def test_parts_that_were_compiled_alone_are_found(plain, tmp_path):
    torch.save(
        {n.replace("layer1.", "layer1._orig_mod."): v for n, v in plain.items()}, tmp_path / "w.pth"
    )
    assert (
        load_teacher(str(tmp_path / "w.pth"), architecture="timm:test_resnet").row.num_classes
        == CLASSES
    )


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
        self.pretrained_cfg = {"input_size": (3, 8, 8)}

    def forward(self, x):
        return self.module(x)


def test_a_network_with_a_part_called_module_keeps_its_names(tmp_path):
    own = Wrapper()
    torch.save(own.state_dict(), tmp_path / "w.pth")
    teacher = load_teacher(str(tmp_path / "w.pth"), architecture=f"{__name__}:Wrapper")
    assert torch.equal(teacher.module.module[1].weight, own.module[1].weight)


def averaged(state):
    return {
        name: value + 1 if value.is_floating_point() else value for name, value in state.items()
    }


AVERAGES = {
    "state_dict_ema": lambda state: state,
    "model_ema": lambda state: {
        "n_averaged": torch.tensor(3),
        **{f"module.{n}": v for n, v in state.items()},
    },
}


@pytest.mark.parametrize("key", AVERAGES)
@pytest.mark.parametrize("beside", ["state_dict", "model"])
def test_a_checkpoint_with_two_kinds_of_weights_says_which_are_taken(key, beside, plain, tmp_path):
    path, told = tmp_path / "both.pth", []
    torch.save({beside: plain, key: AVERAGES[key](averaged(plain))}, path)

    def load(weights=None):
        return load_teacher(
            str(path), architecture="timm:test_resnet", weights=weights, note=told.append
        )

    taken = {weights: load(weights) for weights in (None, "raw", "ema")}
    assert len(told) == 1
    assert "the plain ones are taken; weights='ema'" in told[0]
    assert taken[None].row.digest == taken["raw"].row.digest != taken["ema"].row.digest
    assert [each.row.facts["weights"] for each in taken.values()] == ["raw", "raw", "ema"]
    # a store that recorded the teacher asks for the same weights again
    again = load_recorded_teacher(taken["ema"].row, str(path))
    assert again.row.digest == taken["ema"].row.digest


def test_weights_that_a_file_lacks_are_refused(plain, tmp_path):
    path, told = tmp_path / "w.pth", []
    torch.save({"state_dict": plain}, path)
    with pytest.raises(RejectedInput, match="no moving average"):
        read_weights(path, "ema")
    assert read_weights(path, "raw").note is None
    torch.save({"state_dict_ema": plain}, path)
    with pytest.raises(RejectedInput, match="no plain weights"):
        read_weights(path, "raw")
    teacher = load_teacher(str(path), architecture="test_resnet", note=told.append)
    assert (teacher.row.facts["weights"], len(told)) == ("ema", 1)
    with pytest.raises(UsageError, match="give ema or raw"):
        load_teacher(str(path), architecture="test_resnet", weights="both")
    with pytest.raises(UsageError, match="leave it out"):
        load_teacher("timm:test_resnet", weights="ema")


class Strange:
    pass


def test_a_namespace_is_taken_and_other_objects_are_named(plain, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": plain, "args": argparse.Namespace(lr=0.1)}, path)
    assert load_teacher(str(path), architecture="test_resnet").row.num_classes == CLASSES
    torch.save({"state_dict": plain, "args": Strange()}, path)
    with pytest.raises(
        RejectedInput, match=r"it names .*test_library_facts.Strange, which would be code"
    ) as refused:
        read_weights(path)
    assert "\x1b" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [name for name in models.list_models() if hasattr(models, name)])
def test_torchvisions_pixels_are_those_of_its_transforms(name):
    described = settings_by_name(f"torchvision:{name}")
    transform = models.get_model_weights(name).DEFAULT.transforms()
    if described is None:
        assert not hasattr(transform, "crop_size")
        return
    side = int(np.floor(described["input_size"] / described["crop_pct"]))
    assert [described["input_size"], side] == [*transform.crop_size, *transform.resize_size]
    assert (described["mean"], described["std"]) == (tuple(transform.mean), tuple(transform.std))
    assert described["interpolation"] == transform.interpolation.value


def test_what_no_store_can_hold_is_refused_by_name():
    module = nn.Identity()
    module.pretrained_cfg = {"input_size": (3, 1024, 768)}
    with pytest.raises(UsageError, match="3 channels and 1024 x 768 pixels"):
        own_settings("timm:vit_base_patch16_sapiens2", module)
    with pytest.raises(UsageError, match="no classifier of images"):
        own_settings("torchvision:raft_small", module)


def test_a_size_that_the_network_does_not_take_is_refused(tmp_path):
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="does not take 100 x 100 pixels"):
        load_teacher(str(tmp_path / "w.pth"), architecture="test_vit", input_size=100)


def test_create_takes_and_records_the_average(plain, tmp_path, capsys):
    from tests.generation.conftest import write_photographs

    write_photographs(tmp_path / "images", per_class=1)
    torch.manual_seed(1)
    three = timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.save({"model": three, "model_ema": averaged(three)}, tmp_path / "both.pth")
    given = [
        "--images",
        tmp_path / "images",
        "--num-crops",
        1,
        "--k",
        2,
        "--workers",
        1,
        "--device",
        "cpu",
    ]
    teacher = ["--teacher", tmp_path / "both.pth", "--teacher-model", "test_resnet"]
    code = errors.run(
        labelstore_app.commands, "labelstore",
        [str(word) for word in ("create", tmp_path / "s", *given, *teacher, "--weights", "ema")],
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    import labelstore

    with labelstore.open(tmp_path / "s") as store:
        row = store.teacher(store.label_set_row("both").teacher)
    assert row.facts["weights"] == "ema"
    assert row.digest == load_recorded_teacher(row).row.digest
