"""Label maps and raw outputs: what is stored is what the teacher says of the whole image, or before softmax."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import labelstore
from labelstore import Full, LabelMap, Logits, MarginalSmoothing
from labelstore.care.freezing import freeze
from labelstore.care.leftovers import gc
from labelstore.care.repairing import repair
from labelstore.care.verification import verify
from labelstore.codecs import densify, top_k
from labelstore.cropping.replay import read_image, replay
from labelstore.errors import ConflictError, RejectedInput, UsageError
from labelstore.store.layout import Layout
from labelstore.teachers.dense_head import dense_head, with_dense_head
from labelstore.teachers.teacher import Teacher, load_recorded_teacher, load_teacher
from tests.flat_options import generate, grow, label_images
from tests.generation.conftest import CLASSES, write_photographs, write_teacher

M, K, SIZE = 4, 2, 96
WORK = {"device": "cpu", "workers": 1}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("data") / "photographs", per_class=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Teacher:
    folder = write_teacher(tmp_path_factory.mktemp("teacher") / "teacher")
    return load_teacher(str(folder), input_size=SIZE)


@pytest.fixture(scope="module")
def made(tmp_path_factory, photographs, teacher) -> Path:
    path = tmp_path_factory.mktemp("made") / "s"
    codec = LabelMap(k=K, dtype="float32")
    label_images(
        path, images=photographs, teacher=teacher, codec=codec, num_crops=M, images_per_shard=4,
        name="map", **WORK,
    )  # fmt: skip
    with labelstore.open(path) as store:
        generate(
            store,
            teacher=teacher,
            codec=Logits(dtype="float32"),
            images=photographs,
            name="raw",
            **WORK,
        )
    return path


@pytest.fixture
def store(tmp_path, made):
    with labelstore.open(shutil.copytree(made, tmp_path / "s")) as opened:
        yield opened


def maps_of(teacher: Teacher, photographs: Path, keys) -> torch.Tensor:
    """(N, H, W, C) logits, the slow way: each image squashed, each cell of its features through the classifier."""
    found = []
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (teacher.row.mean, teacher.row.std))
    for key in keys:
        image = read_image(photographs / key)
        box = (0, 0, *image.shape[1:])
        pixels = replay(image, box, False, SIZE, teacher.row.interpolation)[None] / 255
        with torch.inference_mode():
            features = teacher.module.forward_features((pixels - mean) / std)[0]
            weight, bias = teacher.module.fc.weight, teacher.module.fc.bias
            found.append(torch.einsum("fhw,cf->hwc", features, weight) + bias)
    return torch.stack(found)


def test_a_map_holds_the_top_k_of_every_cell(made, teacher, photographs):
    with labelstore.open(made) as store:
        labels = store.label_set("map")
        codec = labels.codec
        assert (codec.height, codec.width, codec.image_size) == (3, 3, SIZE)
        wanted = maps_of(teacher, photographs, store.image_columns["key"]).numpy()
        kept = top_k(wanted, K)
        group = store.group("labels/map")
        found = [part for block in group.blocks for part in group.parts(block, None)]
        ids = np.concatenate([part["map_class"] for part in found])
        logits = np.concatenate([part["map_logit"] for part in found])
        np.testing.assert_array_equal(ids, kept.class_ids)
        np.testing.assert_allclose(logits, kept.probs, atol=1e-4)
        assert labels.is_complete
        assert labels.recover(range(9)).shape == (9, M, len(CLASSES))


def test_maps_take_their_boxes_from_the_plan(made):
    with labelstore.open(made) as store:
        plan = store.crop_plan()
        sizes = np.stack([store.image_columns["height"], store.image_columns["width"]], 1)
        crops = np.broadcast_to(np.arange(M), (9, M))
        boxes, flips = plan.crops_of_images(list(store.image_columns["key"]), sizes, crops)
        for name in ("map", "raw"):
            np.testing.assert_array_equal(store.label_set(name).boxes(range(9)), boxes)
            np.testing.assert_array_equal(store.label_set(name).flips(range(9)), flips)
        # one row per image, whatever M: a growing plan leaves maps as they are
        assert store.group_specs("labels/map")[1] == Layout.of_images(store.plan(), 9)


def test_raw_outputs_are_the_teachers(made, teacher, photographs, tmp_path):
    with labelstore.open(shutil.copytree(made, tmp_path / "s")) as store:
        generate(
            store,
            teacher=teacher,
            codec=Full(dtype="float32"),
            images=photographs,
            name="full",
            **WORK,
        )
        raw, full = store.label_set("raw"), store.label_set("full")
        for temperature in (1.0, 20.0):
            np.testing.assert_allclose(
                raw.recover(range(9), temperature=temperature),
                full.recover(range(9), temperature=temperature),
                atol=1e-6,
            )
        assert raw.outputs_are_classes
        variant = labelstore.derive(raw, MarginalSmoothing(k=2))
        assert variant.is_complete


@pytest.mark.slow
def test_everything_that_walks_a_store_takes_maps(store, teacher, photographs):
    labels = store.label_set("map")
    assert verify(store, "deep").problems == ()
    variant = labelstore.derive(labels, MarginalSmoothing(k=2, dtype="float32"))
    np.testing.assert_allclose(
        variant.recover(range(9)).max(-1), labels.recover(range(9)).max(-1), atol=1e-6
    )
    mask = labelstore.calibrate(labels, name="m")
    assert mask.is_complete
    with pytest.raises(UsageError, match="only the teacher"):
        labelstore.derive(variant, LabelMap(k=2))
    with pytest.raises(UsageError, match="only the teacher"):
        labelstore.derive(labels, Logits())
    again = generate(
        store, teacher=teacher, codec=LabelMap(k=K, dtype="float32"), images=photographs, name="map", **WORK
    )  # fmt: skip
    assert again.num_crops == 0
    with pytest.raises(ConflictError, match="compression"):
        generate(
            store, teacher=teacher, codec=LabelMap(k=1), images=photographs, name="map", **WORK
        )
    before = store.label_set("map").recover(range(9))
    grow(store, num_crops=2 * M, teacher=teacher, images=photographs, label_set="raw", **WORK)
    grown = store.label_set("map")
    assert grown.is_complete
    np.testing.assert_array_equal(grown.recover(range(9))[:, :M], before)
    assert np.isfinite(grown.recover(range(9))).all()


def test_a_lost_map_is_made_again_bit_for_bit(store, teacher, photographs):
    root = store.arrays.root / "labels" / "map" / "map_class"
    file = next(p for p in sorted(root.rglob("*")) if p.is_file() and p.suffix != ".json")
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    assert verify(store).problems
    report = repair(store, images=photographs, teacher=teacher, **WORK)
    assert len(report.shards) == 1
    assert file.read_bytes() == whole
    assert verify(store, "deep").problems == ()


def test_maps_are_dropped_and_frozen_like_any_label_set(store, tmp_path):
    freeze(store)
    with labelstore.open(store.path) as frozen:
        assert verify(frozen).problems == ()
    (store.path / "labelstore.json").unlink()
    with labelstore.open(store.path) as opened:
        from labelstore.care.dropping import drop

        assert drop(opened, "label-set", "map").shards == 3
        assert opened.label_sets == ("raw",)
        gc(opened)
        assert verify(opened, "deep").problems == ()


def test_images_that_cannot_be_used_have_no_map(tmp_path, teacher):
    photographs = write_photographs(tmp_path / "d", per_class=1)
    (photographs / "bird" / "0.jpg").write_bytes(b"no image")
    options = {
        "images": photographs, "teacher": teacher, "codec": LabelMap(k=1), "num_crops": M,
        "images_per_shard": 1, **WORK,
    }  # fmt: skip
    with pytest.raises(RejectedInput, match="`skip_bad`"):
        label_images(tmp_path / "refused", **options)
    report = label_images(tmp_path / "s", skip_bad=True, **options)
    assert list(report.bad) == ["bird/0.jpg"]
    with labelstore.open(tmp_path / "s") as store:
        labels = store.label_set()
        assert np.isnan(labels.recover(["bird/0.jpg"])).all()
        np.testing.assert_allclose(labels.recover(["cat/0.jpg"]).sum(-1), 1, atol=1e-5)
        assert verify(store, "deep").problems == ()


@pytest.mark.parametrize(
    ("name", "is_mean"),
    [
        ("test_resnet", True),
        ("test_efficientnet", True),
        ("test_convnext", False),
        ("mobilenetv3_small_050", False),
    ],
)
def test_the_head_works_cell_by_cell(teacher, name, is_mean):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5).eval()
    row = type(teacher.row)(**{**vars(teacher.row), "num_classes": 5, "source": name})
    found, codec = with_dense_head(Teacher(module=network, row=row), LabelMap(k=2))
    pixels = torch.rand(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        maps = found.module(pixels)
        assert maps.shape == (2, codec.height, codec.width, 5)
        features = network.forward_features(pixels)
        one = network.forward_head(features[:, :, 1:2, 2:3])
        torch.testing.assert_close(maps[:, 1, 2], one, rtol=1e-4, atol=1e-5)
        if is_mean:
            torch.testing.assert_close(maps.mean((1, 2)), network(pixels), rtol=1e-4, atol=1e-5)


def test_teachers_without_a_dense_head_are_refused_in_one_line(teacher, photographs, tmp_path):
    for network in (
        timm.create_model("test_vit", num_classes=3, img_size=SIZE),
        torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
    ):
        without = Teacher(module=network.eval(), row=teacher.row)
        with pytest.raises(RejectedInput, match="no dense head") as caught:
            dense_head(without)
        assert "\n" not in str(caught.value)
        with pytest.raises(RejectedInput):
            label_images(
                tmp_path / "s", images=photographs, teacher=without, codec=LabelMap(k=1), num_crops=M, **WORK
            )  # fmt: skip
        assert not (tmp_path / "s").exists()


class Broken(torch.nn.Module):
    """Outputs that no float16 holds, or NaN."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.full((len(pixels), 3), self.value)


@pytest.mark.parametrize(("value", "message"), [(1e6, "`dtype=float32`"), (float("nan"), "NaN")])
def test_outputs_that_cannot_be_kept_commit_nothing(teacher, photographs, tmp_path, value, message):
    broken = Teacher(module=Broken(value), row=teacher.row)
    with pytest.raises(RejectedInput, match=message):
        label_images(
            tmp_path / "s", images=photographs, teacher=broken, codec=Logits(), num_crops=M, **WORK
        )
    if (tmp_path / "s").exists():
        with labelstore.open(tmp_path / "s") as store:
            assert not any(store.catalogue.ledger.shards(name) for name in store.group_names())


def projection(width: int = 8) -> torch.nn.Module:
    """An SSL teacher: a network with a projection head of 8 outputs."""
    torch.manual_seed(1)
    network = timm.create_model("test_resnet", num_classes=width)
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, 32, 32)}
    return network


def test_an_ssl_teacher_comes_from_a_function_or_a_checkpoint(photographs, tmp_path):
    source = f"{__name__}:projection"
    teacher = load_teacher(source, model_options={"width": 6})
    assert (teacher.row.num_classes, teacher.row.name) == (6, "projection")
    torch.save(projection(6).state_dict(), tmp_path / "ssl.pth")
    same = load_teacher(str(tmp_path / "ssl.pth"), architecture=source, model_options={"width": 6})
    assert same.row.digest == teacher.row.digest
    label_images(
        tmp_path / "s", images=photographs, teacher=teacher, codec=Logits(), num_crops=M, **WORK
    )
    with labelstore.open(tmp_path / "s") as store:
        labels = store.label_set()
        assert (labels.num_classes, labels.outputs_are_classes) == (6, False)
        np.testing.assert_allclose(labels.recover([0], temperature=0.2).sum(-1), 1, atol=1e-5)
        with pytest.raises(RejectedInput, match="cannot be compared with the ground truth"):
            labels.ground_truth_probability(0)
        with pytest.raises(RejectedInput, match="none of the 3 classes"):
            labelstore.calibrate(labels, name="m")
        # a store is data: it cannot have its functions called
        with pytest.raises(UsageError, match="give `teacher"):
            load_recorded_teacher(store.teacher(labels.row.teacher))
        with pytest.raises(UsageError, match=r"package\.module:function"):
            load_recorded_teacher(store.teacher(labels.row.teacher), "timm:resnet18")
        assert load_recorded_teacher(store.teacher(labels.row.teacher), source).row.digest


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no.such.module:function", "No module named"),
        ("tests.generation.conftest:nothing", "has no attribute"),
        ("tests.generation.conftest:CLASSES", "cannot be called"),
        ("tests.generation.conftest:OPTIONS", "cannot be called"),
        ("builtins:dict", "must return a torch.nn.Module"),
    ],
)
def test_functions_that_give_no_network_are_refused(source, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_teacher(source)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_commands_make_and_show_them(photographs, tmp_path, labelstore_command):
    run = write_teacher(tmp_path / "t")

    create = ["create", tmp_path / "s", "--images", photographs, "--teacher", run, "--num-crops", M]
    create += ["--device", "cpu", "--workers", 1]
    code, _, err = labelstore_command(*create, "--compression", "logits", "--temperature", 4)
    assert (code, err.count("\n")) == (2, 1)
    assert not (tmp_path / "s").exists()
    code, _, err = labelstore_command(*create, "--compression", "labelmap", "--dtype", "uint8")
    assert code == 2
    code, out, err = labelstore_command(*create, "--compression", "labelmap", "--k", 2, "--json")
    assert code == 0, err
    code, out, _ = labelstore_command("info", tmp_path / "s", "--json")
    (labels,) = json.loads(out)["label_sets"]
    assert labels["codec"]["name"] == "labelmap"
    assert labels["shards"] == labels["of"]
    code, out, err = labelstore_command("stats", tmp_path / "s")
    assert code == 0, err
    code, out, err = labelstore_command("verify", tmp_path / "s", "--deep")
    assert code == 0, err


@pytest.mark.parametrize("name", ["map", "raw"])
def test_batches_of_maps_and_outputs(store, tmp_path, name):
    """As `recover` gives them, at T = 1 and another: of a map as wide as the fullest one."""
    labels = store.label_set(name)
    rng = np.random.default_rng(0)
    rows, crops = rng.integers(0, 9, 7), rng.integers(0, M, (7, 3))
    flat = labels.unpacked(tmp_path)
    for temperature in (None, 3.0):
        wanted = labels.recover(rows, crops, temperature)
        for source in (labels, flat):
            found = source.batch(rows, crops, temperature=temperature)
            dense = densify(found.labels, labels.num_classes)
            np.testing.assert_allclose(dense, wanted, rtol=1e-5, atol=1e-7)
            assert found.probs.shape == (7, 3, labels.listed or labels.num_classes)
            np.testing.assert_array_equal(
                found.boxes, labels.boxes(rows)[np.arange(7)[:, None], crops]
            )
