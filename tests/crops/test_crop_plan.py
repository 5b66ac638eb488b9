"""Crop plans: golden vectors, an independent reading of the written law, and RandomResizedCrop's statistics."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore.cropping.crop_plan import CropPlan, image_streams, philox4x32
from labelstore.errors import FormatVersionError, RejectedInput, UsageError

GOLDEN_BOXES = [
    [4, 52, 364, 392],
    [32, 65, 332, 415],
    [19, 150, 309, 334],
    [43, 56, 313, 402],
    [29, 123, 290, 361],
    [2, 50, 352, 419],
]
GOLDEN_FLIPS = [False, False, True, True, False, True]

ratios = st.floats(1 / 1024, 1024)
plans = st.builds(
    lambda seed, scale, ratio, flip: CropPlan(
        seed=seed, scale=tuple(sorted(scale)), ratio=tuple(sorted(ratio)), flip_prob=flip
    ),
    st.integers(0, 2**64 - 1),
    st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
    st.tuples(ratios, ratios) | st.just((3 / 4, 4 / 3)) | st.just((1.0, 1.0)),
    st.floats(0, 1),
)
sides = st.integers(1, 65_534) | st.integers(1, 600)


def philox_of_integers(counter, key):
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def knot(ratio, k):
    """One entry of G by its closed form, not by the running product of the module."""
    with localcontext() as context:
        context.prec = 60
        low, high = Decimal(ratio[0]), Decimal(ratio[1])
        value = 2**26 * ((low.ln() / 2) + (high / low).ln() * min(k, 4096) / 8192).exp()
        return int(value.to_integral_value(ROUND_HALF_EVEN))


def crop_by_the_written_law(plan, key, height, width, crop):
    """The docstring of labelstore/cropping/crop_plan.py in plain integers of any size."""
    s0, s1 = (round(bound * 2**32) for bound in plan.scale)
    r0, r1 = (round(bound * 2**32) for bound in plan.ratio)
    digest = hashlib.sha256(unicodedata.normalize("NFC", key).encode()).digest()
    stream = int.from_bytes(digest[:8], "little")
    box = flip = None
    for attempt in range(10):
        counter = (attempt, crop, stream % 2**32, stream >> 32)
        x0, x1, x2, x3 = philox_of_integers(counter, (plan.seed % 2**32, plan.seed >> 32))
        if attempt == 0:
            flip = ((x0 % 2**8) << 8) + x1 % 2**8 < round(plan.flip_prob * 2**16)
        u, v = x0 >> 8, x1 >> 8
        area = s0 + ((s1 - s0) * u >> 24)
        side = math.isqrt(height * width * area)
        k = v >> 12
        g0, g1 = knot(plan.ratio, k), knot(plan.ratio, k + 1)
        g = g0 + ((g1 - g0) * (v % 2**12) >> 12)
        w = (side * g + 2**41) >> 42
        h = ((side << 27) + (g << 16)) // (g << 17)
        if 1 <= w <= width and 1 <= h <= height:
            box = (x2 * (height - h + 1) >> 32, x3 * (width - w + 1) >> 32, h, w)
            break
    if box is None:
        w, h = width, height
        if width << 32 < height * r0:
            h = ((width << 33) + r0) // (2 * r0)
        elif width << 32 > height * r1:
            w = (height * r1 + 2**31) >> 32
        w, h = min(max(w, 1), width), min(max(h, 1), height)
        box = ((height - h) >> 1, (width - w) >> 1, h, w)
    return box, flip


def test_golden_vectors():
    boxes, flips = CropPlan(seed=2**40 + 7).crops(
        "n01440764/n01440764_10026.JPEG", 375, 500, range(6)
    )
    assert boxes.tolist() == GOLDEN_BOXES
    assert flips.tolist() == GOLDEN_FLIPS


def test_philox_known_answers():
    """The vectors that Random123 ships for philox4x32-10."""
    for counter, key, words in (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ):
        arrays = tuple(np.array([word], np.uint64) for word in counter)
        assert tuple(int(word[0]) for word in philox4x32(arrays, key)) == words


@settings(deadline=None, max_examples=60)
@given(
    plans,
    st.text(min_size=1, max_size=20),
    sides,
    sides,
    st.lists(st.integers(0, 2**32 - 1), max_size=5),
)
def test_equals_the_law_as_it_is_written(plan, key, height, width, crops):
    boxes, flips = plan.crops(key, height, width, crops)
    for row, crop in enumerate(crops):
        box, flip = crop_by_the_written_law(plan, key, height, width, crop)
        assert tuple(boxes[row].tolist()) == box
        assert bool(flips[row]) == flip


@settings(deadline=None, max_examples=60)
@given(plans, sides, sides)
def test_boxes_lie_inside_the_image(plan, height, width):
    boxes, _ = plan.crops("a/b.jpg", height, width, range(50))
    top, left, box_height, box_width = boxes.astype(int).T
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()


def test_grouping_does_not_matter(monkeypatch):
    plan = CropPlan(seed=5)
    keys = [f"class/{i}.jpg" for i in range(30)]
    sizes = [(100 + 7 * i, 90 + 11 * i) for i in range(30)]
    crops = np.random.default_rng(0).integers(0, 1000, (30, 7))
    boxes, flips = plan.crops_of_images(keys, sizes, crops)
    for row, key in enumerate(keys):
        alone = [plan.crops(key, *sizes[row], [crop]) for crop in crops[row]]
        assert np.array_equal(boxes[row], np.concatenate([box for box, _ in alone]))
        assert np.array_equal(flips[row], np.concatenate([flip for _, flip in alone]))
    monkeypatch.setattr("labelstore.cropping.crop_plan.SLICE", 13)
    sliced, sliced_flips = plan.crops_of_images(image_streams(keys), sizes, crops)
    assert np.array_equal(boxes, sliced)
    assert np.array_equal(flips, sliced_flips)


def test_seeds_keys_and_crops_give_different_boxes():
    def distinct(boxes):
        return len({tuple(box) for box in boxes.reshape(-1, 4).tolist()})

    crops = np.arange(1000)
    assert distinct(CropPlan().crops("a", 3000, 4000, crops)[0]) > 990
    by_seed = [CropPlan(seed=seed).crops("a", 3000, 4000, [0])[0] for seed in (0, 1, 2**32, 2**63)]
    assert distinct(np.stack(by_seed)) == 4
    assert not np.array_equal(by_seed[0], CropPlan().crops("b", 3000, 4000, [0])[0])


def test_key_is_normalised():
    composed, decomposed = "caf\u00e9.jpg", "cafe\u0301.jpg"
    assert np.array_equal(
        *(CropPlan().crops(key, 500, 400, range(9))[0] for key in (composed, decomposed))
    )


def test_same_distribution_as_random_resized_crop():
    """Means of area, log ratio and position against torchvision's sampler, within five standard errors."""
    torch = pytest.importorskip("torch")
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    height, width, count = 375, 500, 4000
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)],
        float,
    )
    ours, flips = CropPlan(seed=11).crops("x", height, width, range(20 * count))

    def measures(boxes):
        top, left, h, w = boxes.astype(float).T
        shape = [h * w, np.log(w / h), (h * w) ** 2, np.log(w / h) ** 2, h == height]
        return np.stack([*shape, top, left, top * left, (top + h) * (left + w)])

    a, b = measures(ours), measures(theirs)
    error = np.sqrt(a.var(axis=1) / a.shape[1] + b.var(axis=1) / b.shape[1])
    assert (np.abs(a.mean(axis=1) - b.mean(axis=1)) < 5 * error).all()
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / math.sqrt(len(flips))


def test_flip_is_independent_of_the_box():
    boxes, flips = CropPlan(flip_prob=0.3).crops("x", 375, 500, range(80_000))
    area = boxes[:, 2].astype(float) * boxes[:, 3]
    assert abs(flips.mean() - 0.3) < 0.01
    assert abs(np.corrcoef(area, flips)[0, 1]) < 0.02


def test_flip_prob_zero_and_one():
    assert not CropPlan(flip_prob=0).crops("x", 50, 60, range(5000))[1].any()
    assert CropPlan(flip_prob=1).crops("x", 50, 60, range(5000))[1].all()


def test_centre_crop_where_nothing_fits():
    boxes, _ = CropPlan(scale=(1, 1), ratio=(1, 1)).crops("x", 30, 100, range(3))
    assert boxes.tolist() == [[0, 35, 30, 30]] * 3
    boxes, _ = CropPlan(scale=(1, 1), ratio=(1, 1)).crops("x", 101, 30, range(2))
    assert boxes.tolist() == [[35, 0, 30, 30]] * 2


def test_record_goes_through_json():
    plan = CropPlan(seed=2**64 - 1, scale=(0.1, 0.9), ratio=(0.3, 7 / 3), flip_prob=0.1)
    assert CropPlan.from_record(json.loads(json.dumps(plan.to_record()))) == plan
    with pytest.raises(FormatVersionError, match="newer labelstore"):
        CropPlan.from_record(plan.to_record() | {"law": "random-resized-crop/philox4x32-10/2"})
    with pytest.raises(UsageError, match="unknown"):
        CropPlan.from_record(plan.to_record() | {"colour": 1})


@pytest.mark.parametrize(
    "parameters",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.2)},
        {"scale": (0.5, 1.5)},
        {"scale": (0.5,)},
        {"scale": (float("nan"), 1.0)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"ratio": (1.0, 5000.0)},
        {"flip_prob": -0.1},
        {"flip_prob": float("nan")},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_impossible_parameters(parameters):
    with pytest.raises(UsageError) as caught:
        CropPlan(**parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (65_535, 10), (10, 70_000), (-1, 5)])
def test_images_that_cannot_be_cropped(size):
    with pytest.raises(RejectedInput, match=r"cat/1\.jpg"):
        CropPlan().crops("cat/1.jpg", *size, [0])


def test_shapes_that_do_not_match():
    with pytest.raises(UsageError, match="given"):
        CropPlan().crops_of_images(["a", "b"], [(10, 10)], [[0], [1]])
    with pytest.raises(UsageError, match="crop numbers"):
        CropPlan().crops("a", 10, 10, [-1])


def test_no_crops_and_no_images():
    boxes, flips = CropPlan().crops("a", 10, 10, [])
    assert boxes.shape == (0, 4)
    assert flips.shape == (0,)
    boxes, flips = CropPlan().crops_of_images([], np.empty((0, 2), int), np.empty((0, 3), int))
    assert boxes.shape == (0, 3, 4)
    assert flips.shape == (0, 3)
