"""Crops: against Pillow, against F.interpolate, into buffers of either memory layout, and from threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch.nn.functional import interpolate

from labelstore.cropping.crop_plan import CropPlan
from labelstore.cropping.replay import CROP_MODES, INTERPOLATIONS, centre_crop, replay, replay_many
from labelstore.errors import RejectedInput, UsageError

HEIGHT, WIDTH = 211, 303


def make_image(kind):
    rng = np.random.default_rng(0)
    if kind == "noise":
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    else:
        coarse = Image.fromarray(rng.integers(0, 256, (14, 20, 3), np.uint8))
        pixels = np.array(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def by_pillow(image, box, flip, size, interpolation):
    top, left, height, width = (int(edge) for edge in box)
    whole = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    crop = whole.crop((left, top, left + width, top + height))
    crop = crop.resize((size, size), getattr(Image.Resampling, interpolation.upper()))
    if flip:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def plan_rows():
    return CropPlan(seed=3, scale=(0.005, 1.0)).crops("x", HEIGHT, WIDTH, range(60))


@pytest.mark.parametrize("kind", ["smooth", "noise"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_within_one_of_pillow(kind, interpolation, plan_rows):
    image = make_image(kind)
    values = beyond = 0
    for box, flip in zip(*plan_rows, strict=True):
        ours = replay(image, box, flip, 64, interpolation).numpy().astype(int)
        difference = np.abs(ours - by_pillow(image, box, flip, 64, interpolation))
        values += difference.size
        beyond += int((difference > 1).sum())
    allowed = {("bilinear", "smooth"): 1e-5, ("bilinear", "noise"): 1e-5}
    allowed |= {("bicubic", "smooth"): 1e-4, ("bicubic", "noise"): 5e-4}
    assert beyond <= values * allowed.get((interpolation, kind), 0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_equals_interpolate(interpolation, plan_rows):
    image = make_image("noise")
    for box, flip in zip(*plan_rows, strict=True):
        top, left, height, width = box.tolist()
        crop = image[None, :, top : top + height, left : left + width].contiguous()
        expected = interpolate(crop, (48, 48), mode=interpolation, antialias=True)[0]
        expected = expected.flip(2) if flip else expected
        assert torch.equal(replay(image, box, flip, 48, interpolation), expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_buffers_of_either_layout(memory_format, interpolation, plan_rows):
    image = make_image("noise")
    boxes, flips = (rows[:6] for rows in plan_rows)
    batch = torch.full((8, 3, 40, 40), 7, dtype=torch.uint8).to(memory_format=memory_format)
    replay_many(image, boxes, flips, 40, interpolation, batch[1:7])
    for row in range(6):
        alone = replay(image, boxes[row], flips[row], 40, interpolation)
        assert torch.equal(batch[row + 1], alone)
    assert (batch[[0, 7]] == 7).all()


def test_planar_and_strided_images_give_the_same(plan_rows):
    image = make_image("noise")
    wide = torch.zeros(3, HEIGHT + 5, WIDTH + 9, dtype=torch.uint8)
    wide[:, 2:-3, 4:-5] = image
    for other in (image.contiguous(), wide[:, 2:-3, 4:-5]):
        for box, flip in zip(*plan_rows, strict=True):
            assert torch.equal(replay(image, box, flip, 32), replay(other, box, flip, 32))


def test_a_crop_of_the_asked_size_is_copied():
    image = make_image("noise")
    for interpolation in INTERPOLATIONS:
        crop = replay(image, (10, 20, 64, 64), False, 64, interpolation)
        assert torch.equal(crop, image[:, 10:74, 20:84])
        crop = replay(image, (10, 20, 64, 64), True, 64, interpolation)
        assert torch.equal(crop, image[:, 10:74, 20:84].flip(2))


def test_threads_give_the_same(plan_rows):
    image = make_image("noise")
    boxes, flips = plan_rows
    alone = torch.stack([replay(image, *row, 50) for row in zip(boxes, flips, strict=True)])
    batch = torch.empty_like(alone, memory_format=torch.channels_last)
    with ThreadPoolExecutor(4) as pool:
        parts = [slice(start, start + 7) for start in range(0, len(boxes), 7)]
        jobs = [
            pool.submit(replay_many, image, boxes[p], flips[p], 50, "bilinear", batch[p])
            for p in parts
        ]
        for job in jobs:
            job.result()
    assert torch.equal(alone, batch)


@pytest.mark.parametrize(
    "shape", [(100, 140), (140, 100), (64, 64), (97, 301), (33, 35), (20, 150)]
)
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0, 1.15])
@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_centre_crop_equals_timm(shape, crop_pct, crop_mode, interpolation):
    mean = (0.485, 0.456, 0.406)
    image = make_image("smooth")[:, : shape[0], : shape[1]]
    transform = create_transform(
        (3, 64, 64), interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, mean=mean,
        use_prefetcher=True,
    )  # fmt: skip
    theirs = transform(Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())))
    ours = centre_crop(image, 64, crop_pct, interpolation, crop_mode=crop_mode, mean=mean)
    difference = np.abs(ours.numpy().astype(int) - np.asarray(theirs))
    assert ours.shape == (3, 64, 64)
    assert difference.max() <= 2
    assert (difference > 1).mean() <= 1e-3


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, HEIGHT + 1, 10),
        (0, 0, 10, WIDTH + 1),
        (-1, 0, 5, 5),
        (0, 0, 0, 5),
        (65_535, 65_535, 65_535, 65_535),
    ],
)
def test_boxes_outside_the_image(box):
    with pytest.raises(RejectedInput, match="another copy"):
        replay(make_image("smooth"), box, False, 32)


def test_impossible_calls():
    image = make_image("smooth")
    with pytest.raises(UsageError, match="not one of bilinear"):
        replay(image, (0, 0, 9, 9), False, 32, "random")
    with pytest.raises(UsageError, match="needed is uint8"):
        replay(image, (0, 0, 9, 9), False, 32, out=torch.empty(3, 32, 32))
    with pytest.raises(UsageError, match="room for 1"):
        replay_many(
            image, np.zeros((2, 4), int), np.zeros(2, bool), 8, "bilinear", torch.empty(1, 3, 8, 8)
        )
    with pytest.raises(UsageError, match="crop_pct"):
        centre_crop(image, 32, 2.5)
    with pytest.raises(UsageError, match="not one of center, squash, border"):
        centre_crop(image, 32, crop_mode="centre")
