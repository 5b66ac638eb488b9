"""The loader benchmark: FKD's way gives the labels and pixels of ours, and the run ends with every promised figure."""

import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from benchmarks import fkd_loader, loader, loader_labels, loader_step
from benchmarks.loader_data import label_data, picture_data
from benchmarks.loader_pixels import Rounds, take_turns
from benchmarks.loader_report import TARGETS, report
from benchmarks.scale_store import NUM_CLASSES
from labelstore.exchange.readers.fkd import label_file
from tests.flat_options import CropDataset

KEYS = (
    "pixel_ratio_vs_fkd",
    "pixel_share_of_floor",
    "floor_ratio_vs_fkd",
    "label_crops_per_s",
    "label_ratio_vs_fkd",
    "crops_measured",
)
TINY = loader.Scale(
    images=17, large_images=1, num_crops=20, rounds=1, label_images=300, stored_images=40,
    label_crops=20, fkd_files=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return picture_data(tmp_path_factory.mktemp("pictures"), 3, 20)


def test_fkds_way_gives_the_same_labels_and_pixels(data, tmp_path):
    """Same files, same boxes: what both sides hand over differs in speed only."""
    made = CropDataset(data.labels, data.images, 4, scratch=tmp_path, passes=1)
    images = fkd_loader.FkdImages(data.images.root, data.fkd, data.keys, 4, 224)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (fkd_loader.MEAN, fkd_loader.STD))
    for number, key in enumerate(data.keys):
        item = made[number]
        boxes, flips, labels = fkd_loader.read_file(data.fkd / label_file(key))
        crops = item["crops"].numpy()
        dense = fkd_loader.recover(torch.from_numpy(labels[crops]), NUM_CLASSES)
        expected = data.labels.recover([number], [crops])[0]
        np.testing.assert_allclose(dense.numpy(), expected, atol=2e-4)
        with fkd_loader.Image.open(data.images.root / key) as image:
            theirs = torch.stack(
                [images.crop(image.convert("RGB"), boxes[c], bool(flips[c])) for c in crops]
            )
        ours = (item["pixels"] / 255 - mean) / std
        # bilinear kernels differ from Pillow's by 1/255 here and there
        assert ((ours - theirs) * std).abs().max() < 2.1 / 255
    made.close()


def test_fkds_batches_are_whole(data):
    images = fkd_loader.FkdImages(data.images.root, data.fkd, data.keys, 2, 32)
    found = list(fkd_loader.batches(images, images_per_batch=2, workers=0, num_classes=NUM_CLASSES))
    assert [len(pixels) for pixels, _, _ in found] == [4, 2]
    assert sorted(n for _, numbers, _ in found for n in numbers.tolist()) == [0, 0, 1, 1, 2, 2]
    for pixels, _, labels in found:
        assert pixels.shape[1:] == (3, 32, 32)
        torch.testing.assert_close(labels.sum(1), torch.ones(len(labels)), rtol=1e-4, atol=1e-4)


def test_repeated_labels_are_those_of_the_store(tmp_path):
    """The label side of ImageNet's size reads the records of a smaller store, each as it is there."""
    data = label_data(tmp_path, 40, 20, 2)
    with ExitStack() as stack:
        found = loader_labels.measure(
            data, 2, num_images=100, rounds=2, stack=stack, scratch=tmp_path
        )
    assert found["crops_measured"] == 2 * (100 + 2) * loader_labels.CROPS_PER_IMAGE
    planes = [np.load(path) for path in sorted(tmp_path.glob("repeated-*.npy"))]
    assert len(planes) == loader_labels.CROPS_PER_IMAGE
    for plane in planes:
        assert np.array_equal(plane[:40], plane[40:80])
        for row in range(40):
            labels = data.labels.recover([row], [[int(plane[row]["crop"])]])[0, 0]
            kept = plane[row]["class_ids"]
            np.testing.assert_allclose(plane[row]["probs"], labels[kept], atol=1e-6)


def test_sides_take_turns():
    order = []

    def side(name):
        def spend(number):
            order.append((number, name))
            return loader_step.Spent(wall=1, cpu=2.0 if name == "a" else 1.0, crops=1)

        return spend

    found = take_turns({"a": side("a"), "b": side("b")}, 2, 1)
    assert order == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
    assert found.ratio("a", "b") == 2
    assert Rounds(us={"a": [1.0, 3.0, 2.0]}).of("a") == 2


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA" in loader_step.measure_gpu(100.0)["skipped"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured():
    found = loader_step.measure_gpu(500.0)
    assert min(found["crops_per_s"].values()) > 0
    assert found["cores_to_keep_it_fed"] > 0


@pytest.mark.slow
def test_the_run_ends_with_every_promised_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(loader_step, "STUDENT", "test_byobnet")
    result = loader.measure(tmp_path, TINY, 1)
    for key in (*KEYS, *(target.key for target in TARGETS)):
        assert math.isfinite(result[key]), key
        assert result[key] > 0, key
    assert {"ffcv", "dali"} <= result["not_measured"].keys() | result["others"].get("m1", {}).keys()
    page = report(result)
    assert all(target.words in page for target in TARGETS)
    assert "nan" not in page
