"""ReaL, ImageNetV2, the linear probe and exported weights."""

import dataclasses
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn
from torchvision import models

from labelstore.errors import ConflictError, RejectedInput, UsageError
from trainer.checkpoint import Checkpoint, RunFolder
from trainer.config import TrainConfig
from trainer.evaluation import forward_all
from trainer.evaluation_sets import evaluate_numbered, evaluate_real, outputs_in_order
from trainer.models import load_run
from trainer.probe import ProbeSettings, linear_probe, without_classifier
from trainer.weight_export import export_weights

NAMES = tuple(f"n{number:08d}" for number in (10, 11, 12, 20, 21, 22, 30, 31, 32, 40, 41, 42))
COLOURS = np.random.default_rng(0).integers(0, 256, (12, 3))
CONFIG = TrainConfig(
    labels="ground-truth", num_classes=12, class_names=NAMES, input_size=16, workers=1, crop_pct=1.0
)


class Nearest(nn.Module):
    """Says which of 12 colours a crop has; output k is the colour of class `order[k]`."""

    def __init__(self, order=range(12)):
        super().__init__()
        mean, std = torch.tensor(CONFIG.mean), torch.tensor(CONFIG.std)
        self.colours = nn.Parameter((torch.from_numpy(COLOURS[list(order)]) / 255 - mean) / std)

    def forward(self, crops):
        return -torch.cdist(crops.mean((2, 3)).float(), self.colours.float())


def write(root, names, colours):
    """One picture per name, of the colour of that class."""
    for number, (name, colour) in enumerate(zip(names, colours, strict=True), 1):
        path = root / name / f"ILSVRC2012_val_{number:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), tuple(int(x) for x in COLOURS[colour])).save(path)
    return root


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    return write(tmp_path_factory.mktemp("val"), NAMES, range(12))


@pytest.mark.parametrize("as_mapping", [False, True])
def test_real_counts_any_right_class_and_leaves_out_images_without_one(val, tmp_path, as_mapping):
    # the network says class k for image k; ReaL agrees for images 0-4, has none for 5, differs for the rest
    labels = [[k] if k < 3 else [0, k] if k < 5 else [] if k == 5 else [0, 1] for k in range(12)]
    names = [f"ILSVRC2012_val_{k + 1:08d}.png" for k in range(12)]
    found = dict(zip(names, labels, strict=True)) if as_mapping else labels
    (tmp_path / "real.json").write_text(json.dumps(found))
    for order in (range(12), range(11, -1, -1)):
        config = dataclasses.replace(CONFIG, class_names=tuple(NAMES[k] for k in order))
        result = evaluate_real(Nearest(order), val, tmp_path / "real.json", config)
        assert (result.images, result.without_label) == (11, 1)
        assert result.top1 == pytest.approx(100 * 5 / 11)


@pytest.mark.parametrize(
    "text",
    ["no json", "{}", "[[0]]", "[[99]]", '[["0"]]', "[[true]]", "[1]", "[[[0]]]", "[" * 9999],
)
def test_a_file_that_is_not_reals_is_refused(val, tmp_path, text):
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(RejectedInput) as caught:
        evaluate_real(Nearest(), val, tmp_path / "real.json", CONFIG)
    assert "\n" not in str(caught.value)


def test_numbered_folders_are_numbers_and_not_text(tmp_path):
    """ "10" comes before "2" as text; the pictures of folder k have the colour of class k."""
    root = write(tmp_path / "v2", [str(k) for k in range(12)], range(12))
    for order in (range(12), (3, 1, 2, 0, *range(4, 12))):
        config = dataclasses.replace(CONFIG, class_names=tuple(NAMES[k] for k in order))
        assert evaluate_numbered(Nearest(order), root, config).top1 == 100
    unnamed = dataclasses.replace(CONFIG, class_names=())
    assert evaluate_numbered(Nearest(), root, unnamed).top1 == 100
    assert outputs_in_order(unnamed, 5).tolist() == list(range(12))
    small = dataclasses.replace(CONFIG, class_names=NAMES[:4], num_classes=4)
    with pytest.raises(UsageError, match="class 11"):
        evaluate_numbered(Nearest(range(4)), root, small)
    write(tmp_path / "v2", ["cat"], [0])
    with pytest.raises(RejectedInput, match="'cat'"):
        evaluate_numbered(Nearest(), root, CONFIG)


IN_ORDER = ("tench", "goldfish", "great white shark")
READABLE = (*IN_ORDER, *(f"class {k:03d}" for k in range(3, 1000)))


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (("n00000020", "n00000010", "n00000030"), [1, 0, 2]),
        (tuple(sorted(str(k) for k in range(12))), [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]),
        (READABLE, list(range(1000))),
    ],
    ids=["ids", "numbers", "names for people"],
)
def test_class_numbers_follow_from_ids_and_from_nothing_else(names, outputs):
    """Sorting the names that people read would call tench the class of some other fish."""
    config = dataclasses.replace(CONFIG, class_names=names, num_classes=len(names))
    assert outputs_in_order(config, len(names)).tolist() == outputs


@pytest.mark.parametrize(
    "names", [IN_ORDER, tuple(sorted(READABLE)), ("n00000010", "cat"), ("0", "2")]
)
def test_names_that_tell_no_number_are_refused(names, tmp_path):
    config = dataclasses.replace(CONFIG, class_names=names, num_classes=len(names))
    root = write(tmp_path / "v2", ["0", "1"], range(2))
    with pytest.raises(UsageError, match="n01440764"):
        evaluate_numbered(Nearest(), root, config)
    if len(names) < 4:
        named = write(tmp_path / "named", names, range(len(names)))
        (tmp_path / "real.json").write_text("[[0], [1], [1]]")
        with pytest.raises(UsageError, match="n01440764"):
            evaluate_real(Nearest(), named, tmp_path / "real.json", config)


class Features(nn.Module):
    """The mean colour as features, below a classifier that knows nothing."""

    def __init__(self, head=True):
        super().__init__()
        self.head = nn.Linear(3, 5)
        nn.init.zeros_(self.head.weight)

    def forward(self, crops):
        return self.head(crops.mean((2, 3)))


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_a_probe_finds_what_the_features_hold(tmp_path, solver):
    """Three classes in corners of the colour cube, and a class that `val` names in another order."""
    rng = np.random.default_rng(1)
    for part, count in (("train", 12), ("val", 4)):
        for nth, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                colour = [20, 20, 20]
                colour[nth] = int(rng.integers(120, 256))
                Image.new("RGB", (20, 20), tuple(colour)).save(tmp_path / part / name / f"{i}.png")
    model = Features()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = ProbeSettings(solver=solver, epochs=60, lr=0.5, batch_size=8)
    config = dataclasses.replace(CONFIG, class_names=(), num_classes=5)
    found, head = linear_probe(
        model, tmp_path / "train", tmp_path / "val", config, settings=settings
    )
    assert found.num_images == 12
    assert found.top1 == 100
    assert head.weight.shape == (3, 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    (tmp_path / "val" / "dog").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "val" / "dog" / "0.png")
    with pytest.raises(RejectedInput, match="'dog'"):
        linear_probe(model, tmp_path / "train", tmp_path / "val", config)


def test_the_probes_head_minimises_its_objective(tmp_path):
    """At the optimum of mean loss + weight decay, the gradient is zero (checked by hand, unstandardised away)."""
    from trainer.probe import _fit

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 4, generator=generator)
    classes = (features @ torch.randn(4, 3, generator=generator)).argmax(1)
    head = _fit(features, classes, 3, ProbeSettings(weight_decay=0.01, epochs=500), "cpu")
    loss = nn.functional.cross_entropy(head(features), classes)
    (loss + 0.005 * head.weight.square().sum()).backward()
    assert float(head.weight.grad.abs().max()) < 1e-4


def test_features_of_timm_and_of_other_networks():
    small = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_width": 8}
    model = timm.create_model("resnet18", num_classes=7, **small)
    bare, width = without_classifier(model, 32)
    assert width == 8
    assert model.fc.out_features == 7
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval().forward_head(model.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(bare(pixels), expected)
    assert without_classifier(Features(), 32)[1] == 3
    with pytest.raises(UsageError, match="classifier"):
        without_classifier(nn.Conv2d(3, 3, 1), 32)


@pytest.fixture(scope="module")
def resnet_run(tmp_path_factory):
    """A run folder of an untrained ResNet-50 with 3 classes."""
    config = TrainConfig(
        labels="ground-truth", model="resnet50", num_classes=3, class_names=("a", "b", "c")
    )
    torch.manual_seed(0)
    model = timm.create_model("resnet50", num_classes=3)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "student")
    folder.start(config)
    checkpoint = Checkpoint(
        step=1, epoch=1, arch="resnet50", state_dict=model.state_dict(), optimizer={}
    )
    folder.save(checkpoint, best=True)
    return folder.path


@pytest.mark.slow
def test_exported_weights_are_loaded_by_timm_torchvision_and_its_detectors(resnet_run, tmp_path):
    """COCO transfer starts from backbones with these weights (FKD Table 11)."""
    from safetensors.torch import load_file
    from torchvision.models import resnet50
    from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

    model, config = load_run(resnet_run)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(pixels)

    made = export_weights(model, config, tmp_path / "t.pth", format="timm")
    again = timm.create_model(
        made["model"], checkpoint_path=str(tmp_path / "t.pth"), **made["arguments"]
    )
    export_weights(model, config, tmp_path / "p.safetensors", format="safetensors")
    assert load_file(tmp_path / "p.safetensors").keys() == model.state_dict().keys()
    export_weights(model, config, tmp_path / "v.pth", format="torchvision")
    state = torch.load(tmp_path / "v.pth", weights_only=True)
    theirs = resnet50(num_classes=3)
    theirs.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(pixels), expected)
        torch.testing.assert_close(theirs.eval()(pixels), expected, rtol=1e-4, atol=1e-4)
        features = model.forward_features(pixels)
        for detector in (fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn):
            with torch.device("meta"):  # the rest of the detector is not needed
                network = detector(weights=None, weights_backbone=None, num_classes=2).eval()
            found = network.backbone.body.load_state_dict(state, strict=False, assign=True)
            assert set(found.unexpected_keys) == {"fc.weight", "fc.bias"}
            assert all("num_batches_tracked" in key for key in found.missing_keys)
            # the body ends in the classifier's features
            body = network.backbone.body(pixels)
            torch.testing.assert_close(list(body.values())[-1], features, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_exported_is_refused(resnet_run, tmp_path):
    model, config = load_run(resnet_run)
    out = tmp_path / "w.pth"
    dry = export_weights(model, config, out, format="timm", dry_run=True)
    assert not out.exists()
    assert dry["parameters"] == sum(p.numel() for p in model.parameters())
    export_weights(model, config, out, format="timm")
    with pytest.raises(ConflictError, match="exists"):
        export_weights(model, config, out, format="timm")
    with pytest.raises(UsageError, match="ends with"):
        export_weights(model, config, tmp_path / "w.txt", format="timm")
    other = dataclasses.replace(config, model="resnet18")
    with pytest.raises(UsageError, match="other weights"):
        export_weights(model, other, tmp_path / "x.pth", format="torchvision")
    for name, format in (("a.b:c", "timm"), ("vit_tiny_patch16_224", "torchvision")):
        wrong = dataclasses.replace(config, model=name)
        with pytest.raises(UsageError, match="`format="):
            export_weights(model, wrong, tmp_path / "x.pth", format=format)


def test_a_probe_holds_its_features_once(tmp_path, monkeypatch):
    """Of ImageNet they are ten gigabytes."""
    from trainer import probe

    for part in ("train", "val"):
        write(tmp_path / part, NAMES[:3], range(3))
    places, compute, fit = [], probe._features, probe._fit

    def features(*given):
        found = compute(*given)
        places.append(found.data_ptr())
        return found

    def fitted(found, *given):
        places.append(found.data_ptr())
        torch.testing.assert_close(found.mean(0), torch.zeros(found.shape[1]), atol=1e-5, rtol=0)
        return fit(found, *given)

    monkeypatch.setattr(probe, "_features", features)
    monkeypatch.setattr(probe, "_fit", fitted)
    config = dataclasses.replace(CONFIG, class_names=(), num_classes=5)
    model = timm.create_model("test_resnet", num_classes=5)
    linear_probe(model, tmp_path / "train", tmp_path / "val", config)
    assert len(places) == 2
    assert places[0] == places[1]


class Backwards(nn.Module):
    """Layers are made in another order than they are called in, and a hidden one is a convolution."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(6, 4)
        self.hidden = nn.Linear(5, 6)
        self.stem = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return self.classifier(self.hidden(self.stem(x).mean((2, 3))))


@pytest.mark.parametrize(
    ("network", "width"),
    [
        (Backwards(), 6),
        (models.squeezenet1_1(num_classes=4), 512),
        (models.mobilenet_v3_small(num_classes=4), 1024),
    ],
)
def test_the_classifier_is_the_layer_that_is_called_last(network, width):
    bare, found = without_classifier(network, 64)
    assert found == width
    assert bare(torch.zeros(2, 3, 64, 64)).shape == (2, width)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_evaluation_sees_the_pixels_of_timms_crop_mode(tmp_path, crop_mode):
    (tmp_path / "a").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (9, 14, 3), np.uint8)
    picture = Image.fromarray(noise).resize((70, 45))
    picture.save(tmp_path / "a" / "0.png")
    settings = {
        "crop_pct": 0.9,
        "crop_mode": crop_mode,
        "mean": (0.5, 0.25, 0.75),
        "interpolation": "bicubic",
    }
    wanted = TrainConfig(
        labels="ground-truth",
        num_classes=2,
        class_names=("a", "b"),
        input_size=16,
        workers=1,
        **settings,
    )
    theirs = create_transform((3, 16, 16), use_prefetcher=True, **settings)(picture)
    ((_, pixels),) = forward_all(Normalised(wanted), [tmp_path / "a" / "0.png"], wanted)
    difference = (pixels[0] - torch.as_tensor(theirs).flatten()).abs()
    assert float(difference.max()) <= 2.01


class Normalised(nn.Module):
    """Gives back the pixels, 0 to 255, that it was shown normalised."""

    def __init__(self, config):
        super().__init__()
        self.mean, self.std = (
            torch.tensor(each).view(3, 1, 1) for each in (config.mean, config.std)
        )

    def forward(self, x):
        return (255 * (x * self.std + self.mean)).flatten(1)
