"""Crops made on the device are those of `replay`, to 1 of 255 but for a few in a million; here the device is the
CPU, with the same code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import labelstore
from labelstore import CropPlan, MarginalSmoothing
from labelstore.care.auditing import audit
from labelstore.cropping.device_decoding import crops_on_device
from labelstore.cropping.replay import read_image, replay_many
from labelstore.errors import RejectedInput, UsageError
from labelstore.labelling.generation_options import check_crop_device
from labelstore.testing.digit_pictures import photographs as real_photographs
from tests.flat_options import label_images

SIZE = 96


def both(image, interpolation, size=SIZE, count=40):
    boxes, flips = CropPlan().crops("a", *image.shape[-2:], np.arange(count))
    ours, theirs = (torch.empty(count, 3, size, size, dtype=torch.uint8) for _ in range(2))
    crops_on_device(image, boxes, flips, interpolation, ours)
    replay_many(image, boxes, flips, size, interpolation, theirs)
    return (ours.int() - theirs.int()).abs()


@pytest.mark.sample(1)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_differ_as_little_as_stated(interpolation):
    """Stated in docs/how-to/own-teacher.md and device_crops.py; noise is the worst case."""
    for picture in real_photographs()[:3]:
        image = torch.from_numpy(np.array(picture.resize((250, 190)))).permute(2, 0, 1).contiguous()
        difference = both(image, interpolation, count=16)
        assert difference.max() <= 2
        assert (difference > 0).float().mean() < 0.01
        assert (difference > 1).float().mean() < 2e-5
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 150, 200), np.uint8))
    difference = both(noise, interpolation, count=16)
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.03


def test_a_box_that_leaves_the_image_is_refused():
    out = torch.empty(1, 3, 8, 8, dtype=torch.uint8)
    for box in ([0, 0, 11, 5], [3, 0, 8, 5], [0, 0, 0, 5]):
        with pytest.raises(RejectedInput, match="leaves an image"):
            crops_on_device(
                torch.zeros(3, 10, 10, dtype=torch.uint8),
                np.array([box]),
                np.array([False]),
                "bilinear",
                out,
            )


def test_what_a_device_cannot_do_is_refused():
    check_crop_device("cpu", "lanczos")
    with pytest.raises(UsageError, match="wants lanczos"):
        check_crop_device("cuda", "lanczos")
    with pytest.raises(UsageError, match="moon"):
        check_crop_device("moon", "bilinear")


@pytest.mark.slow
def test_labels_from_device_crops_are_close_and_recorded(tmp_path, photographs, run_folder):
    """`cuda` asks for crops on the teacher's device, whichever that is."""
    found = {}
    for place in ("cpu", "cuda"):
        label_images(
            tmp_path / place,
            images=photographs,
            teacher=str(run_folder),
            codec=MarginalSmoothing(k=2, dtype="float32"),
            num_crops=6,
            batch_size=10,
            device="cpu",
            workers=2,
            crop_device=place,
        )
        with labelstore.open(tmp_path / place) as store:
            assert store.label_set_row().facts["crop_device"] == place
            found[place] = store.label_set().recover(range(21))
            # its own crops again: the audit makes them in the same place
            assert audit(store, device="cpu", workers=2).largest < 1e-5
    assert 0 < np.abs(found["cpu"] - found["cuda"]).max() < 0.02


@pytest.mark.gpu
def test_on_a_gpu(photographs):
    image = read_image(photographs / "dog" / "1.jpg")
    boxes, flips = CropPlan().crops("a", *image.shape[-2:], np.arange(30))
    here, there = (
        torch.empty(30, 3, SIZE, SIZE, dtype=torch.uint8, device=d) for d in ("cpu", "cuda")
    )
    crops_on_device(image, boxes, flips, "bilinear", here)
    crops_on_device(image.cuda(), boxes, flips, "bilinear", there)
    assert (here.int() - there.cpu().int()).abs().max() <= 2
