"""ReActNet-A against the paper's own figures, and its gradients against their formulas."""

import itertools

import pytest
import torch
from torch import nn

from trainer.config import TrainConfig
from trainer.models import create_model
from trainer.models.reactnet import CHANNELS, BinaryConv2d, ReActNet, RPReLU, RSign, reactnet_a

TINY = {"channels": (4, 8, 16, 16)}


def test_multiplications_are_the_papers():
    """Table 1 of the paper: 4.82 G binary and 0.12 G / 10 real ones at 224 x 224."""
    model = reactnet_a()
    counts = {"binary": 0, "real": 0}

    def count(module, _, output):
        places = output.shape[-1] * output.shape[-2] if output.ndim == 4 else 1
        kind = "binary" if isinstance(module, BinaryConv2d) else "real"
        counts[kind] += places * module.weight.numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.device("meta"), torch.no_grad():
        model.to("meta").eval()(torch.zeros(1, 3, 224, 224))
    assert counts["binary"] / 1e9 == pytest.approx(4.82, abs=0.005)
    assert counts["real"] / 1e8 == pytest.approx(0.12, abs=0.005)


def test_parameters_follow_from_the_structure():
    """Counted by hand from the paper's description of a block, not from the code's modules."""
    total = 3 * 9 * 32 + 2 * 32
    for one, two in itertools.pairwise(CHANNELS):
        total += 9 * one * one + one * two  # 3x3, then 1x1 (two halves where channels double)
        total += 2 * one + 2 * two  # batch norm after each
        total += 2 * one + 3 * (one + two)  # RSign before each, RPReLU after each
    total += 1024 * 1000 + 1000
    assert sum(p.numel() for p in reactnet_a().parameters()) == total


def test_weights_and_activations_are_binary():
    model = ReActNet(num_classes=3, **TINY)
    inputs = []
    for module in model.modules():
        if isinstance(module, BinaryConv2d):
            module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
            values = module.binary_weight().flatten(1)
            assert all(len(row.unique()) <= 2 for row in values.detach().round(decimals=7))
            torch.testing.assert_close(
                values.abs(), module.weight.flatten(1).abs().mean(1, keepdim=True).expand_as(values)
            )
    model(torch.randn(2, 3, 32, 32))
    assert inputs
    assert all(set(x.unique().tolist()) <= {-1.0, 1.0} for x in inputs)


def test_gradients_pass_the_signs_as_the_paper_says():
    sign = RSign(1)
    x = torch.tensor([-2.0, -0.5, 0.0, 0.25, 3.0], requires_grad=True)
    sign(x.view(1, 1, 1, 5)).sum().backward()
    assert x.grad.tolist() == pytest.approx([0, 1, 2, 1.5, 0])
    assert float(sign.threshold.grad) == pytest.approx(-4.5)
    conv = BinaryConv2d(1, 1, 1)
    with torch.no_grad():
        conv.weight.fill_(0.5)
    conv(torch.full((1, 1, 1, 1), 3.0)).backward()
    assert float(conv.weight.grad) == 3.0
    with torch.no_grad():
        conv.weight.fill_(1.5)
    conv.weight.grad = None
    conv(torch.full((1, 1, 1, 1), 3.0)).backward()
    assert float(conv.weight.grad) == 0.0


def test_rprelu_moves_both_ways():
    act = RPReLU(1)
    with torch.no_grad():
        act.gamma.fill_(1.0)
        act.zeta.fill_(10.0)
    x = torch.tensor([0.0, 3.0]).view(2, 1, 1, 1)
    assert act(x).flatten().tolist() == pytest.approx([-0.25 + 10, 2 + 10])


def test_it_is_made_by_name_and_learns():
    config = TrainConfig(
        labels="ground-truth",
        model="trainer.models.reactnet:reactnet_a",
        model_kwargs={"channels": [4, 8, 16, 16]},
        num_classes=3,
        input_size=32,
    )
    model = create_model(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pixels = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(12) % 3
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(pixels), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    assert model.forward_head(model.forward_features(pixels), pre_logits=True).shape == (12, 16)
