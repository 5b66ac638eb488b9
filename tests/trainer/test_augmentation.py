import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import v2

from labelstore.cropping.pixel_operations import ARGUMENTS
from trainer.augmentation import (
    PRINCIPAL_COLOURS,
    PRINCIPAL_DEVIATIONS,
    Augmentation,
    _happens,
    augmentation_of,
    color_jitter,
    erase,
    light,
    rand_augment,
)
from trainer.config import TrainConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def crops(count=4, side=32, seed=0):
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.integers(0, 256, (count, 3, 6, 6), dtype=np.uint8))
    large = torch.nn.functional.interpolate(small.float(), size=side, mode="bilinear")
    return large.round().to(torch.uint8).contiguous(memory_format=torch.channels_last)


def picture(crop):
    return Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy())


def augmentation(**changes):
    config = TrainConfig(
        labels="ground-truth",
        **{
            "color_jitter": (0.4, 0.4, 0.4, 0.1),
            "rand_augment": 9,
            "erasing_prob": 0.5,
            **changes,
        },
    )
    return augmentation_of(config)


def test_what_a_crop_becomes_depends_on_seed_image_and_position_alone():
    change = augmentation()
    together = crops()
    change(together, 42, range(8, 12))
    alone = crops()
    for nth in (3, 0, 2, 1):
        change(alone[nth : nth + 1], 42, range(8 + nth, 9 + nth))
    assert torch.equal(together, alone)
    others = []
    for seed, stream, first in ((1, 42, 8), (0, 43, 8), (0, 42, 12)):
        other = crops()
        augmentation(seed=seed)(other, stream, range(first, first + 4))
        others.append(other)
    assert all(not torch.equal(together, other) for other in others)


def test_nothing_asked_for_is_nothing_done():
    assert augmentation(color_jitter=(0, 0, 0, 0), rand_augment=0, erasing_prob=0) is None


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("level", [0.0, 0.35, 0.9, 1.0])
def test_severities_are_timms(name, level, monkeypatch):
    """The arguments that timm's own level functions give, for either sign."""
    function = auto_augment.LEVEL_TO_ARG[name]
    for sign, draw in ((1, 0.1), (-1, 0.9)):
        monkeypatch.setattr(auto_augment.random, "random", lambda draw=draw: draw)
        expected = () if function is None else function(10 * level, {})
        if name == "PosterizeIncreasing":
            expected = (max(1, *expected),)  # Pillow refuses to keep no bit
        assert ARGUMENTS[name](level, sign) == pytest.approx(tuple(expected))


def test_half_of_the_operations_are_applied():
    rng = np.random.default_rng(0)
    flat = picture(crops(1)[0])
    same = [
        rand_augment(flat, rng, magnitude=9, std=0.5, num_ops=1, fill=(124, 116, 104)) is flat
        for _ in range(400)
    ]
    assert 140 < sum(same) < 260


def test_colours_are_jittered_within_torchvisions_bounds():
    """Brightness alone: every factor within 1 +- 0.4, spread over all of it, and torchvision's own pixels."""
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    rng = np.random.default_rng(0)
    values = [color_jitter(grey, rng, (0.4, 0, 0, 0)).getpixel((0, 0))[0] for _ in range(300)]
    assert 59 <= min(values) < 65
    assert 135 < max(values) <= 140
    all_of_it = color_jitter(picture(crops(1)[0]), rng, (0.4, 0.4, 0.4, 0.1))
    assert all_of_it.size == (32, 32)
    assert v2.functional.adjust_hue(grey, 0.1).getpixel((0, 0)) == (100, 100, 100)


@pytest.mark.parametrize("name", ["grayscale_prob", "blur_prob", "color_jitter_prob"])
def test_a_probability_is_the_share_of_the_crops(name):
    """MoCo v2's choices: 0.2 of the crops are grey, 0.2 blurred, 0.6 jittered; the others stay as they are."""
    prob = 0.6 if name == "color_jitter_prob" else 0.2
    plain = {"color_jitter": (0, 0, 0, 0), "rand_augment": 0, "erasing_prob": 0}
    strength = {"color_jitter": (0.4, 0.4, 0.4, 0.1)} if name == "color_jitter_prob" else {}
    change = augmentation(**{**plain, **strength, name: prob})
    before = crops(1, side=16).repeat(400, 1, 1, 1)
    after = before.clone()
    change(after, 1, range(400))
    changed = (after != before).flatten(1).any(1)
    assert prob - 0.1 < float(changed.float().mean()) < prob + 0.1
    if name == "grayscale_prob":
        grey = after[changed]
        expected = Image.fromarray(before[0].permute(1, 2, 0).contiguous().numpy()).convert("L")
        assert torch.equal(grey[0, 1], torch.from_numpy(np.array(expected)))
        assert torch.equal(grey[:, :1].expand_as(grey), grey)
    if name == "blur_prob":
        # a blur moves light, and adds none
        assert float(after[changed].float().std()) < float(before.float().std())
        assert float(after[changed].float().mean()) == pytest.approx(
            float(before.float().mean()), abs=1
        )


def test_lighting_has_the_covariance_that_it_says():
    """sigma^2 V diag(lambda^2) V^T of pixels in [0, 1], the same colour everywhere (Krizhevsky et al. 2012)."""
    shifts = []
    for seed in range(2000):
        crop = torch.full((3, 2, 2), 128, dtype=torch.uint8)
        light(crop, np.random.default_rng(seed), 0.3)
        assert len(torch.unique(crop.flatten(1), dim=1)[0]) == 1
        shifts.append((crop[:, 0, 0].double() - 128) / 255)
    found = torch.stack(shifts).T.cov().numpy()
    expected = 0.3**2 * (PRINCIPAL_COLOURS * PRINCIPAL_DEVIATIONS**2) @ PRINCIPAL_COLOURS.T
    np.testing.assert_allclose(found, expected, atol=0.15 * expected.max())
    np.testing.assert_allclose(PRINCIPAL_COLOURS.T @ PRINCIPAL_COLOURS, np.eye(3), atol=2e-3)
    white = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    light(white, np.random.default_rng(1), 1.0)
    assert int(white.max()) <= 255


def test_what_is_certain_draws_nothing():
    """A run from before the probabilities existed goes on with the crops that it would have had."""
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    assert _happens(rng, 1.0)
    assert not _happens(rng, 0.0)
    assert rng.random() == again.random()


def test_an_erased_box_has_the_datas_mean_and_deviation():
    shares = []
    for seed in range(40):
        crop = torch.zeros(3, 64, 64, dtype=torch.uint8)
        erase(crop, np.random.default_rng(seed), MEAN, STD)
        rows, columns = torch.where(crop.sum(0) > 0)
        height, width = (int(x.max() - x.min()) + 1 for x in (rows, columns))
        inside = crop[:, rows.min() :, columns.min() :][:, :height, :width].float() / 255
        shares.append(height * width / 64**2)
        assert 0.2 < height / width < 5
        if height * width > 500:
            for channel, mean, std in zip(inside, MEAN, STD, strict=True):
                assert float(channel.mean()) == pytest.approx(mean, abs=0.05)
                assert float(channel.std()) == pytest.approx(std, abs=0.05)
    assert min(shares) < 0.08
    assert 0.25 < max(shares) < 0.36


def test_threads_share_nothing():
    from concurrent.futures import ThreadPoolExecutor

    change: Augmentation = augmentation()
    expected = []
    for stream in range(12):
        one = crops()
        change(one, stream, range(4))
        expected.append(one)
    found = [crops() for _ in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: change(found[i], i, range(4)), range(12)))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
