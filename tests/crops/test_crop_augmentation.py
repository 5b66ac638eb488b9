"""What is done to a crop's pixels is a pure function of (plan's seed, image key, crop), and the same everywhere."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelstore.cropping.crop_augmentation import (
    COLOURS,
    OPERATIONS,
    CropAugmentation,
    Operation,
    PlannedAugmentation,
    planned_augmentation,
)
from labelstore.cropping.crop_mixing import plan_record
from labelstore.cropping.crop_plan import CropPlan, image_streams, philox4x32
from labelstore.cropping.pixel_operations import ARGUMENTS, apply_operations
from labelstore.cropping.replay import replay, replay_many
from labelstore.errors import FormatVersionError, UsageError

GOLDEN = [
    [
        ("hue", -0.065877890587, 1, False),
        ("contrast", 1.321882200241, 1, False),
        ("saturation", 0.940640449524, 1, False),
        ("brightness", 0.672612476349, 1, False),
    ],
    [
        ("brightness", 0.837298107147, 1, False),
        ("contrast", 1.140523290634, 1, False),
        ("saturation", 0.784227466583, 1, False),
        ("hue", -0.074019122124, 1, False),
        ("SharpnessIncreasing", 0.815641281545, -1, False),
    ],
]
BOTH = CropAugmentation(color_jitter=(0.4, 0.4, 0.4, 0.1), rand_augment=9)


def plainly(seed: int, settings: CropAugmentation, key: str, crop: int) -> list[Operation]:
    """One crop at a time, from the law as it is written down."""
    stream = int(image_streams([key])[0])

    def words(a: int) -> list[int]:
        counter = tuple(np.array([w], np.uint64) for w in (a, crop, stream % 2**32, stream >> 32))
        return [int(w[0]) for w in philox4x32(counter, (seed % 2**32, seed >> 32))]

    found = []
    if any(settings.color_jitter):
        orders = sorted([a, b, c, d] for a in range(4) for b in range(4) for c in range(4)
                        for d in range(4) if len({a, b, c, d}) == 4)  # fmt: skip
        x = words(16)
        for k in orders[24 * words(17)[0] >> 32]:
            s, u = settings.color_jitter[k], (x[k] >> 8) / 2**24
            if s:
                found.append(Operation(COLOURS[k], s * (2 * u - 1) + (k != 3)))
    if settings.rand_augment:
        for j in range(settings.rand_augment_ops):
            x0, x1, x2, x3 = words(18 + j)
            if (x3 >> 16) >= 2**15:
                continue
            halves = [x1 % 2**16, x1 >> 16, x2 % 2**16, x2 >> 16]
            z = (sum(halves) / 2**16 - 2) * math.sqrt(3)
            level = np.clip(settings.rand_augment + settings.rand_augment_std * z, 0, 10) / 10
            name = OPERATIONS[15 * x0 >> 32]
            found.append(Operation(name, float(level), 1 - 2 * (x3 % 2), bool(x3 >> 1 & 1)))
    return found


@given(
    st.integers(0, 2**64 - 1),
    st.text(min_size=1, max_size=8).filter(str.isprintable),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5),
    st.tuples(*[st.sampled_from([0.0, 0.3, 0.5])] * 4),
    st.sampled_from([0.0, 4.0, 10.0]),
    st.integers(1, 3),
)
def test_it_is_the_law_whatever_is_asked_together(seed, key, crops, jitter, magnitude, ops):
    settings = CropAugmentation(color_jitter=jitter, rand_augment=magnitude, rand_augment_ops=ops)
    planned = PlannedAugmentation(seed, settings)
    found = planned.operations(key, crops)
    assert found == planned.operations(int(image_streams([key])[0]), np.array(crops))
    for crop, operations in zip(crops, found, strict=True):
        expected = plainly(seed, settings, key, crop)
        assert [(o.name, o.sign, o.bicubic) for o in operations] == [
            (o.name, o.sign, o.bicubic) for o in expected
        ]
        np.testing.assert_allclose(
            [o.value for o in operations], [o.value for o in expected], rtol=1e-15
        )


def test_one_crop_to_compare_with():
    """The same in any language: `FORMAT.md` lists these."""
    found = PlannedAugmentation(1, BOTH).operations("cat/1.jpg", [0, 7])
    assert [
        [(o.name, round(o.value, 12), o.sign, o.bicubic) for o in crop] for crop in found
    ] == GOLDEN


def test_draws_are_spread_as_promised():
    found = PlannedAugmentation(3, BOTH).operations("a", range(6000))
    names = [o.name for crop in found for o in crop if o.name in OPERATIONS]
    assert abs(len(names) / 12_000 - 0.5) < 0.02
    counts = np.array([names.count(name) for name in OPERATIONS])
    assert abs(counts / len(names) * 15 - 1).max() < 0.2
    levels = np.array([o.value for crop in found for o in crop if o.name in OPERATIONS])
    assert abs(levels.mean() - 0.9) < 0.01
    assert abs(levels.std() - 0.05) < 0.006
    for name, strength, centre in zip(COLOURS, BOTH.color_jitter, (1, 1, 1, 0), strict=True):
        values = np.array([o.value for crop in found for o in crop if o.name == name])
        assert len(values) == 6000
        assert abs(values.mean() - centre) < 0.01
        assert abs(values.std() - strength / math.sqrt(3)) < 0.01
    assert abs(np.mean([crop[0].name == "hue" for crop in found]) - 0.25) < 0.03


def test_pixels_are_the_operations_one_after_the_other():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 255, (3, 50, 60), dtype=np.uint8))
    boxes, flips = CropPlan().crops("a", 50, 60, range(8))
    planned = PlannedAugmentation(0, BOTH).operations("a", range(8))
    out = torch.empty((8, 3, 32, 32), dtype=torch.uint8, memory_format=torch.channels_last)
    replay_many(image, boxes, flips, 32, "bilinear", out, planned)
    for box, flip, operations, got in zip(boxes, flips, planned, out, strict=True):
        plain = replay(image, box, bool(flip), 32)
        expected = plain.clone()
        for operation in operations:
            apply_operations(expected, (operation,))
        assert torch.equal(got, expected)
        # into memory of another layout too
        held = torch.empty((3, 32, 32), dtype=torch.uint8)
        assert torch.equal(replay(image, box, bool(flip), 32, out=held, operations=operations), got)
        assert not torch.equal(got, plain)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_operation_changes_pixels_and_keeps_their_form(name):
    smooth = torch.linspace(20, 200, 32).to(torch.uint8).expand(3, 32, 32).clone()
    smooth[1] //= 2
    smooth[:, ::5] += 9
    for level, sign in ((0.0, 1), (0.8, -1), (1.0, 1), (1.0, -1)):
        changed = smooth.clone()
        apply_operations(changed, (Operation(name, level, sign, sign > 0),))
        assert changed.shape == smooth.shape
        assert level == 0 or not torch.equal(changed, smooth)


def test_records_come_back():
    record = json.loads(json.dumps(plan_record(CropPlan(seed=5), BOTH)))
    planned = planned_augmentation(record)
    assert planned == PlannedAugmentation(5, BOTH)
    assert CropPlan.from_record(record) == CropPlan(seed=5)
    assert planned_augmentation(plan_record(CropPlan(), CropAugmentation())) is None
    with pytest.raises(FormatVersionError, match="newer labelstore"):
        planned_augmentation({**record, "augmentation": {"law": "other"}})
    law = record["augmentation"]["law"]
    for wrong in ({"law": law, "x": 1}, {"law": law, "color_jitter": 3}, [1], "x"):
        with pytest.raises(UsageError):
            planned_augmentation({**record, "augmentation": wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"color_jitter": (0.4, 0.4, 0.4)},
        {"color_jitter": (0.4, 0.4, 1.4, 0)},
        {"color_jitter": (0.4, 0.4, 0.4, 0.6)},
        {"color_jitter": (float("nan"), 0, 0, 0)},
        {"rand_augment": -1},
        {"rand_augment": float("nan")},
        {"rand_augment": 11},
        {"rand_augment": 1, "rand_augment_std": float("inf")},
        {"rand_augment": 1, "rand_augment_ops": 0},
        {"rand_augment": 1, "rand_augment_ops": 99},
    ],
)
def test_strengths_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError):
        CropAugmentation(**wrong)
