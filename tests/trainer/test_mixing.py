import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.dense_reference import dense_labels, soft_cross_entropy
from trainer.config import TrainConfig
from trainer.losses import SparseSoftCrossEntropy
from trainer.mixing import mixed_labels, mixing_rng, mixture

CLASSES, M, SIDE = 12, 4, 16


def batch(seed=0, images=3, kept=3):
    """Crop r is all r, so that a mixed pixel tells where it came from."""
    rng = np.random.default_rng(seed)
    size = images * M
    ids = rng.permuted(np.tile(np.arange(CLASSES), (size, 1)), axis=1)[:, :kept]
    probs = rng.dirichlet(np.full(CLASSES, 0.3), size).astype(np.float32)[:, :kept]
    rest = (1 - probs.sum(1)) / max(CLASSES - kept, 1)
    pixels = torch.arange(size).float().view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE).clone()
    return pixels, (
        torch.from_numpy(ids),
        torch.from_numpy(probs),
        torch.from_numpy(rest.astype(np.float32)),
    )


def config(mixing, **changes):
    return TrainConfig(labels="ground-truth", mixing=mixing, crops_per_image=M, **changes)


def mix(config, pixels, labels, rng, *, crops_per_image=M):
    """The pixels and labels of a batch, as one mixture changes them."""
    found = mixture(
        config,
        rng,
        size=len(pixels),
        side=SIDE,
        crops_per_image=crops_per_image,
        device=pixels.device,
    )
    return (pixels, labels) if found is None else (found.pixels(pixels), found.labels(labels))


@given(st.integers(0, 2**32), st.integers(1, CLASSES))
def test_mixed_sparse_loss_equals_dense_in_value_and_gradient(seed, kept):
    _, labels = batch(seed, kept=kept)
    size = len(labels[0])
    rng = np.random.default_rng(seed)
    partner = torch.from_numpy(rng.permutation(size))
    weight = torch.from_numpy(rng.random(size, np.float32))
    logits = torch.from_numpy(rng.normal(size=(size, CLASSES)).astype(np.float32) * 4)
    dense = dense_labels(*labels, CLASSES)
    expected = weight[:, None] * dense + (1 - weight[:, None]) * dense[partner]
    mixed = mixed_labels(labels, partner, weight)
    torch.testing.assert_close(dense_labels(*mixed, CLASSES), expected, rtol=1e-5, atol=1e-6)
    one, two = (logits.clone().requires_grad_() for _ in range(2))
    sparse_loss, dense_loss = (
        SparseSoftCrossEntropy()(one, *mixed),
        soft_cross_entropy(two, expected),
    )
    sparse_loss.backward()
    dense_loss.backward()
    torch.testing.assert_close(sparse_loss, dense_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mixing", ["selfmix", "mixup", "cutmix", "mixup-cutmix"])
@pytest.mark.parametrize("seed", range(5))
def test_pixels_and_labels_are_mixed_in_the_same_proportion(mixing, seed):
    pixels, labels = batch(seed)
    mixed, (ids, probs, rest) = mix(config(mixing), pixels, labels, mixing_rng(seed, 0))
    dense = dense_labels(*labels, CLASSES)
    got = dense_labels(ids, probs, rest, CLASSES)
    torch.testing.assert_close(got.sum(1), torch.ones(len(got)), rtol=1e-5, atol=1e-5)
    assert got.min() > -1e-6
    for row in range(len(pixels)):
        # the mean value of a crop is w * row + (1 - w) * partner; one pair explains pixels and label
        mean = mixed[row].mean().item()
        explained = []
        for partner in range(len(pixels)):
            weight = 1.0 if partner == row else (mean - partner) / (row - partner)
            if -1e-4 <= weight <= 1 + 1e-4:
                label = weight * dense[row] + (1 - weight) * dense[partner]
                explained.append((label - got[row]).abs().max().item())
        assert min(explained) < 1e-4


@given(st.integers(0, 2**32))
def test_selfmix_never_leaves_the_image_and_uses_every_crop_once(seed):
    pixels, labels = batch()
    mixed, _ = mix(config("selfmix"), pixels, labels, mixing_rng(seed, 0))
    partners = []
    for row, crop in enumerate(mixed):
        values = set(crop.unique().int().tolist())
        assert {value // M for value in values} == {row // M}
        assert len(values) <= 2
        partners += [value for value in values if value != row]
    assert len(partners) == len(set(partners))


def test_selfmix_mixes_and_differs_between_images():
    pixels, labels = batch(images=40)
    mixed, _ = mix(config("selfmix"), pixels, labels, mixing_rng(0, 0))
    shares = (mixed != pixels).float().mean((1, 2, 3)).view(40, M)
    assert (shares == shares[:, :1]).all()
    assert len(shares[:, 0].unique()) > 10
    assert 0.1 < shares.mean() < 0.6


def test_selfmix_leaves_images_alone_with_probability_one_minus_prob():
    pixels, labels = batch(images=200)
    some, none = (config("selfmix", mixing_prob=prob) for prob in (0.25, 0.0))
    mixed, _ = mix(some, pixels, labels, mixing_rng(0, 0))
    touched = (mixed != pixels).any(3).any(2).any(1).view(200, M).any(1)
    assert 0.12 < touched.float().mean() < 0.35
    same, same_labels = mix(none, pixels, labels, mixing_rng(0, 0))
    assert torch.equal(same, pixels)
    torch.testing.assert_close(dense_labels(*same_labels, CLASSES), dense_labels(*labels, CLASSES))


@pytest.mark.parametrize("mixing", ["selfmix", "mixup", "cutmix", "mixup-cutmix"])
def test_the_same_key_mixes_the_same_and_another_key_otherwise(mixing):
    pixels, labels = batch()

    def mixed(*key):
        return mix(config(mixing), pixels, labels, mixing_rng(*key))[0]

    assert torch.equal(mixed(1, 2), mixed(1, 2))
    others = [mixed(1, 3), mixed(2, 1), mixed(1, 2, 1), mixed(3, 0)]
    assert not any(torch.equal(mixed(1, 2), other) for other in others)


@pytest.mark.parametrize("mixing", ["none", "mixup", "cutmix", "mixup-cutmix"])
def test_probability_zero_and_none_change_nothing(mixing):
    pixels, labels = batch()
    never = config(mixing, mixing_prob=0.0)
    assert mix(never, pixels, labels, mixing_rng(0, 0)) == (pixels, labels)
    assert mix(config("none"), pixels, labels, mixing_rng(0, 0)) == (pixels, labels)


def test_memory_format_of_a_batch_is_kept():
    pixels, labels = batch()
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    for mixing in ("selfmix", "mixup", "cutmix"):
        mixed, _ = mix(config(mixing), pixels, labels, mixing_rng(0, 1))
        assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("mixing", ["selfmix", "mixup", "cutmix"])
def test_the_gpu_mixes_as_the_cpu_does(mixing):
    pixels, labels = batch()
    here = mix(config(mixing), pixels, labels, mixing_rng(0, 0))
    there = mix(config(mixing), pixels.cuda(), tuple(t.cuda() for t in labels), mixing_rng(0, 0))
    torch.testing.assert_close(there[0].cpu(), here[0])
    for one, two in zip(there[1], here[1], strict=True):
        torch.testing.assert_close(one.cpu(), two)
    logits = torch.randn(len(pixels), CLASSES, generator=torch.Generator().manual_seed(0))
    loss = SparseSoftCrossEntropy()
    torch.testing.assert_close(loss(logits.cuda(), *there[1]).cpu(), loss(logits, *here[1]))


@pytest.mark.parametrize("name", ["selfmix", "mixup", "cutmix"])
def test_a_weight_of_one_changes_nothing(name):
    """SelfMix with lambda 1 is no mixing: nothing of the partner in pixels or labels."""

    class Ones(np.random.Generator):
        def beta(self, a, b, size=None):
            return 1.0 if size is None else np.ones(size)

    pixels, labels = batch()
    rng = Ones(np.random.PCG64(0))
    mixed, mixed_ones = mix(config(name), pixels, labels, rng)
    assert torch.equal(mixed, pixels)
    torch.testing.assert_close(dense_labels(*mixed_ones, CLASSES), dense_labels(*labels, CLASSES))


@given(st.integers(0, 2**32))
def test_dense_labels_mix_without_growing(seed):
    rng = np.random.default_rng(seed)
    probs = torch.from_numpy(rng.dirichlet(np.ones(CLASSES), 6).astype(np.float32))
    ids, rest = torch.arange(CLASSES).expand(6, -1), torch.zeros(6)
    partner, weight = (
        torch.from_numpy(rng.permutation(6)),
        torch.from_numpy(rng.random(6, np.float32)),
    )
    shared = mixed_labels((ids, probs, rest), partner, weight)
    assert shared[0].shape == (6, CLASSES)
    plain = mixed_labels((ids.contiguous().clone(), probs, rest), partner, weight)
    torch.testing.assert_close(dense_labels(*shared, CLASSES), dense_labels(*plain, CLASSES))


def test_single_crop_passes_have_nothing_to_selfmix():
    pixels, labels = batch()
    mixed, same = mix(config("selfmix"), pixels, labels, mixing_rng(0, 0), crops_per_image=1)
    assert mixed is pixels
    assert same is labels


def test_the_last_epochs_are_not_mixed():
    """ReLabel's release: no CutMix in the last 5 of 300 epochs; a pass of m epochs counts by its first one."""
    off = config("cutmix", epochs=12, mixing_off_epochs=4)
    pixels, _ = batch()
    drawn = [
        mixture(
            off, mixing_rng(0, epoch), epoch=epoch, size=len(pixels), side=SIDE, crops_per_image=M
        )
        for epoch in range(12)
    ]
    assert [each is None for each in drawn] == [False] * 8 + [True] * 4
    always = config("cutmix", epochs=12)
    assert mixture(always, mixing_rng(0, 0), epoch=11, size=8, side=SIDE, crops_per_image=M)
