import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.trainer.dense_reference import dense_labels, soft_cross_entropy
from trainer.losses import (
    Discriminator,
    DistillationLoss,
    SparseSoftCrossEntropy,
    label_entropy,
)


def sparse_labels(seed, batch, kept, classes):
    """Marginal smoothing's labels (FKD Eq. 5): K distinct classes, the tail spread over the others."""
    rng = np.random.default_rng(seed)
    probs = -np.sort(-rng.dirichlet(np.full(classes, 0.2), batch).astype(np.float32), axis=1)
    ids = rng.permuted(np.tile(np.arange(classes), (batch, 1)), axis=1)[:, :kept]
    rest = (1 - probs[:, :kept].sum(1)).clip(0) / max(classes - kept, 1)
    return torch.from_numpy(ids), torch.from_numpy(probs[:, :kept]), torch.from_numpy(rest)


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(2, 30), st.data())
def test_sparse_equals_dense_in_value_and_gradient(seed, batch, classes, data):
    kept = data.draw(st.integers(1, classes))
    temperature = data.draw(st.sampled_from([1.0, 0.5, 4.0]))
    labels = sparse_labels(seed, batch, kept, classes)
    logits = torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed)) * 5
    one, two = (logits.clone().requires_grad_() for _ in range(2))
    sparse = SparseSoftCrossEntropy(temperature)(one, *labels)
    dense = soft_cross_entropy(two, dense_labels(*labels, classes), temperature)
    sparse.backward()
    dense.backward()
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)


def test_a_class_listed_twice_gets_both_excesses():
    ids = torch.tensor([[1, 1, 2]])
    probs, rest = torch.tensor([[0.3, 0.4, 0.2]]), torch.tensor([0.1])
    dense = dense_labels(ids, probs, rest, 4)
    torch.testing.assert_close(dense, torch.tensor([[0.1, 0.6, 0.2, 0.1]]))
    logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        SparseSoftCrossEntropy()(logits, ids, probs, rest), soft_cross_entropy(logits, dense)
    )


def test_float32_whatever_the_logits_and_small_id_types():
    ids, probs, rest = sparse_labels(3, 4, 2, 9)
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(3))
    loss = SparseSoftCrossEntropy()(logits.bfloat16(), ids.to(torch.int32), probs.half(), rest)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, SparseSoftCrossEntropy()(logits, ids, probs, rest), rtol=0.02, atol=0.02
    )


@given(arrays(np.float32, (3, 6), elements=st.floats(-1e4, 1e4, width=32)))
def test_extreme_logits_give_a_finite_loss(logits):
    ids, probs, rest = sparse_labels(0, 3, 2, 6)
    assert torch.isfinite(SparseSoftCrossEntropy()(torch.from_numpy(logits), ids, probs, rest))


def test_temperature_shows_in_repr():
    assert "temperature=2.0" in repr(SparseSoftCrossEntropy(2.0))


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(2, 20), st.data())
def test_entropy_of_labels_with_repeated_classes_equals_the_dense_one(seed, batch, classes, data):
    kept = data.draw(st.integers(1, classes))
    one, two = (sparse_labels(seed + i, batch, kept, classes) for i in range(2))
    w = data.draw(st.floats(0, 1))
    mean_rest = w * one[2] + (1 - w) * two[2]
    excess = [w * (one[1] - one[2][:, None]), (1 - w) * (two[1] - two[2][:, None])]
    mixed = (
        torch.cat([one[0], two[0]], 1),
        torch.cat(excess, 1) + mean_rest[:, None],
        mean_rest,
    )
    dense = dense_labels(*mixed, classes).clamp_min(0).double()
    expected = -torch.xlogy(dense, dense).sum(1)
    torch.testing.assert_close(
        label_entropy(mixed, classes).double(), expected, atol=2e-5, rtol=1e-4
    )


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 1.0]), st.booleans(), st.booleans())
def test_distillation_loss_equals_the_papers_equation_in_value_and_gradient(seed, w, kl, squared):
    """FKD Eq. 1 with dense labels: (1 - w) [KL or CE](soft) + w CE(ground truth)."""
    labels = sparse_labels(seed, 6, 3, 8)
    truth = torch.randint(0, 8, (6,), generator=torch.Generator().manual_seed(seed))
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)) * 3
    one, two = (logits.clone().requires_grad_() for _ in range(2))
    soft = SparseSoftCrossEntropy(4.0, squared=squared, kl=kl)
    hard = truth[:, None], torch.ones(6, 1), torch.zeros(6)
    loss = DistillationLoss(soft, w)(one, labels, hard)
    dense, log_q = dense_labels(*labels, 8), torch.log_softmax(two / 4, 1)
    if kl:
        of_labels = torch.nn.functional.kl_div(log_q, dense, reduction="batchmean")
    else:
        of_labels = -(dense * log_q).sum(1).mean()
    expected = (1 - w) * of_labels * (16 if squared else 1)
    expected = expected + w * torch.nn.functional.cross_entropy(two, truth)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)


def test_labels_that_share_a_row_of_ids_are_read_like_any_others():
    ids = torch.tensor([2, 0, 1])
    probs = torch.softmax(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), 1)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    loss = SparseSoftCrossEntropy()
    shared = loss(logits, ids.expand(4, 3), probs, torch.zeros(4))
    torch.testing.assert_close(shared, loss(logits, ids.repeat(4, 1), probs, torch.zeros(4)))
    torch.testing.assert_close(shared, soft_cross_entropy(logits, probs[:, ids.argsort()]))


def test_the_discriminator_is_meal_v2s():
    """BCE of both outputs against (1, 0) for the student's and (0, 1) for the labels' probabilities, added to the loss."""
    torch.manual_seed(0)
    batch, classes = 6, 128
    labels = sparse_labels(1, batch, 5, classes)
    logits = torch.randn(batch, classes).requires_grad_()
    discriminator = Discriminator(classes)
    shapes = [tuple(p.shape) for p in discriminator.parameters() if p.ndim == 2]
    assert shapes == [(16, 128), (2, 16), (2, 2)]
    for bias in (p for p in discriminator.parameters() if p.ndim == 1):
        # the last layer's ReLU is as likely shut as open
        torch.nn.init.constant_(bias, 0.5)
    one, two, three = (
        layer for layer in discriminator.layers if isinstance(layer, torch.nn.Linear)
    )
    total = torch.zeros(())
    for probs, truth in (
        (logits.softmax(-1), (1.0, 0.0)),
        (dense_labels(*labels, classes).float(), (0.0, 1.0)),
    ):
        told = three(two(one(probs).relu()).relu()).relu()
        for output, is_it in zip(told.T, truth, strict=True):
            q = output.sigmoid()
            total = total - (is_it * q.log() + (1 - is_it) * (1 - q).log()).sum()
    expected = total / (2 * batch * 2)
    torch.testing.assert_close(discriminator(logits, *labels), expected)
    soft = SparseSoftCrossEntropy()
    loss = DistillationLoss(soft, 0.0, discriminator)(logits, labels, None)
    torch.testing.assert_close(loss, soft(logits, *labels) + expected)
    (by_logits,) = torch.autograd.grad(expected, logits, retain_graph=True)
    (added,) = torch.autograd.grad(loss - soft(logits, *labels), logits)
    assert by_logits.abs().max() > 0
    torch.testing.assert_close(added, by_logits, rtol=1e-3, atol=1e-6)
