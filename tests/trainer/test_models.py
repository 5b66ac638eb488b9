import dataclasses

import pytest
import torch

from labelstore.errors import RejectedInput, UsageError
from labelstore.teachers.teacher import load_teacher
from labelstore.teachers.weights import state_digest
from trainer.checkpoint import Checkpoint, RunFolder
from trainer.config import TrainConfig
from trainer.losses import SparseSoftCrossEntropy
from trainer.models import Normalise, create_model, load_run
from trainer.probe import without_classifier
from trainer.weight_export import export_weights

TINY = TrainConfig(labels="ground-truth", model="test_resnet", num_classes=3, input_size=32)


def changed(**changes):
    return dataclasses.replace(TINY, **changes)


@pytest.fixture
def run(tmp_path):
    """A finished run: its folder and its network."""
    model = create_model(TINY)
    config = changed(class_names=("a", "b", "c"), mean=(0.5, 0.4, 0.3), crop_pct=0.9)
    folder = RunFolder(tmp_path / "run")
    folder.start(config)
    checkpoint = Checkpoint(
        step=4,
        epoch=4,
        arch=config.model,
        state_dict=model.state_dict(),
        optimizer={},
        config=config.to_mapping(),
    )
    folder.save(checkpoint, best=True)
    return folder.path, model.eval()


def test_normalise_is_the_formula():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    expected = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    got = Normalise(mean.tolist(), std.tolist())(pixels)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    assert not Normalise((0, 0, 0), (1, 1, 1)).state_dict()


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = create_model(TINY)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert state_digest(first.state_dict()) == state_digest(create_model(TINY).state_dict())
    assert state_digest(first.state_dict()) != state_digest(
        create_model(changed(seed=1)).state_dict()
    )
    assert first.training


def test_digest_is_the_one_that_the_catalogue_keeps_and_sees_every_change():
    model = create_model(TINY)
    before = state_digest(model.state_dict())
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert state_digest(model.state_dict()) != before


def test_a_function_can_make_the_network(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, width=1):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(width), nn.Flatten(), nn.Linear(3 * width**2, num_classes))\n"
        "def text(num_classes): return 'no'\n"
        "def wrong(num_classes): return small(num_classes + 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = create_model(changed(model="my_networks:small", model_kwargs={"width": 2}))
    assert model(torch.zeros(5, 3, 32, 32)).shape == (5, 3)
    for name, expected in [
        ("my_networks:text", "must return"),
        ("my_networks:wrong", r"gives \(1, 4\)"),
        ("my_networks:none", "no attribute"),
        ("no_such_module:f", "No module"),
    ]:
        with pytest.raises(UsageError, match=expected):
            create_model(changed(model=name))
    with pytest.raises(UsageError, match="cannot be called"):
        create_model(changed(model="my_networks:small", model_kwargs={"depth": 2}))


def head_of(model):
    """What S2-BNN does with the features of a network that ends in a MoCo v2 head, step by step."""
    first, _, last, _ = model.get_classifier()
    hidden = (model.forward_head(model.forward_features(PIXELS), pre_logits=True)) @ first.weight.T
    outputs = (hidden + first.bias).clamp(min=0) @ last.weight.T + last.bias
    return outputs / outputs.square().sum(1, keepdim=True).sqrt()


PIXELS = torch.rand(2, 3, 32, 32)
SSL = dataclasses.replace(TINY, labels="ssl", store="s", projection_head=True, num_classes=6)


@pytest.mark.parametrize(
    "network",
    [
        {"model": "test_resnet"},
        {
            "model": "trainer.models.reactnet:reactnet_a",
            "model_kwargs": {"channels": [4, 8]},
        },
    ],
)
def test_a_projection_head_is_moco_v2s(network, tmp_path):
    """A hidden layer as wide as the features, unit outputs, gradients for all; a probe takes the whole of it off."""
    config = dataclasses.replace(SSL, **network)
    model = create_model(config)
    plain = create_model(dataclasses.replace(config, projection_head=False))
    width = plain.get_classifier().in_features
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == width**2 + width
    model.eval()
    outputs = model(PIXELS)
    torch.testing.assert_close(outputs, head_of(model))
    torch.testing.assert_close(outputs.norm(dim=1), torch.ones(2))
    soft = torch.softmax(torch.randn(2, 6), 1)
    loss = SparseSoftCrossEntropy(0.2, squared=False)
    found = loss(outputs, torch.arange(6).expand(2, -1), soft, torch.zeros(2))
    expected = -(soft * torch.log_softmax(head_of(model) / 0.2, 1)).sum(1).mean()
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.fc.parameters())
    bare, size = without_classifier(model, 32)
    assert size == width
    features = model.forward_head(model.forward_features(PIXELS), pre_logits=True)
    torch.testing.assert_close(bare(PIXELS), features)


def test_a_run_with_a_projection_head_is_loaded_and_goes_on(tmp_path):
    model = create_model(SSL)
    folder = RunFolder(tmp_path / "run")
    folder.start(SSL)
    checkpoint = Checkpoint(
        step=4,
        epoch=4,
        arch=SSL.model,
        state_dict=model.state_dict(),
        optimizer={},
        config=SSL.to_mapping(),
    )
    folder.save(checkpoint, best=True)
    loaded, config = load_run(folder.path)
    assert config.projection_head
    torch.testing.assert_close(loaded(PIXELS), model.eval()(PIXELS))
    with pytest.raises(UsageError, match="builds both"):
        load_teacher(str(folder.path))
    further = dataclasses.replace(SSL, seed=3, initial_checkpoint=folder.path / "last.pth.tar")
    assert state_digest(create_model(further).state_dict()) == state_digest(model.state_dict())
    with pytest.raises(UsageError, match="`format=safetensors`"):
        export_weights(loaded, config, tmp_path / "w.pth", format="timm")
    export_weights(loaded, config, tmp_path / "w.safetensors", format="safetensors")


def test_networks_that_a_projection_head_does_not_fit_are_refused(tmp_path, monkeypatch):
    (tmp_path / "no_classifier.py").write_text(
        "from torch import nn\n"
        "def small(num_classes):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="get_classifier"):
        create_model(dataclasses.replace(SSL, model="no_classifier:small"))
    with pytest.raises(UsageError, match="belongs to labels='ssl'"):
        changed(projection_head=True)


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="num_classes"):
        create_model(changed(num_classes=None))
    with pytest.raises(UsageError, match="no_such_net"):
        create_model(changed(model="no_such_net"))
    with pytest.raises(UsageError, match="32 x 32"):
        create_model(changed(model="vit_tiny_patch16_224", model_kwargs={"depth": 1}))


def test_load_run_gives_the_network_that_was_saved(run):
    path, model = run
    for source in (path, path / "model.safetensors", path / "last.pth.tar"):
        loaded, config = load_run(source)
        assert config.class_names == ("a", "b", "c")
        assert not loaded.training
        pixels = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(loaded(pixels), model(pixels))


def test_a_run_folder_is_a_teacher(run):
    path, model = run
    teacher = load_teacher(str(path))
    assert teacher.class_names == ("a", "b", "c")
    row = teacher.row
    assert (row.input_size, row.interpolation, row.crop_pct) == (32, "bilinear", 0.9)
    assert tuple(row.mean) == (0.5, 0.4, 0.3)
    assert row.digest == state_digest(model.state_dict())


def test_folders_that_are_no_finished_run_are_rejected(run, tmp_path):
    path, _ = run
    with pytest.raises(RejectedInput, match=r"no config\.yaml"):
        load_run(tmp_path)
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RejectedInput, match="damaged"):
        load_run(path)
    for file in path.glob("*.pth.tar"):
        file.unlink()
    weights.unlink()
    with pytest.raises(RejectedInput, match="no weights yet"):
        load_run(path)


def test_initial_checkpoint_replaces_the_initial_weights(run):
    path, model = run
    config = changed(seed=9, initial_checkpoint=path / "last.pth.tar")
    assert state_digest(create_model(config).state_dict()) == state_digest(model.state_dict())
    with pytest.raises(RejectedInput, match="does not fit"):
        create_model(dataclasses.replace(config, num_classes=4))
