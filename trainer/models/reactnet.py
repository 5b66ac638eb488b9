"""ReActNet-A (Liu et al., ECCV 2020): MobileNetV1 with binary weights and activations, S2-BNN's and FKD's student.

Binary are all convolutions but the first; batch norm, shifts, PReLU and the classifier stay real. Of the paper:
RSign (a learnt threshold per channel before the sign), RPReLU (PReLU between two learnt shifts per channel), a
shortcut around every convolution, and two parallel 1x1 convolutions, joined, where channels double.

    trainer run --model trainer.models.reactnet:reactnet_a ...
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Channels of the first convolution, then those out of each of the 13 blocks."""


class RSign(nn.Module):
    """sign(x - threshold), a threshold per channel; its gradient is that of a piecewise square (Bi-Real Net)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> -1 or 1 of the same shape."""
        x = x - self.threshold
        clipped = x.clamp(-1, 1)
        smooth = clipped * (2 - clipped.abs())
        # the difference is exactly zero, so that the values stay binary
        return _sign(x).detach() + (smooth - smooth.detach())


class RPReLU(nn.Module):
    """PReLU(x - gamma) + zeta, all three parameters per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.zeta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.prelu = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        moved: Tensor = self.prelu(x - self.gamma) + self.zeta
        return moved


class BinaryConv2d(nn.Conv2d):
    """Convolution with sign(w) times the mean |w| of its output channel; gradients pass where |w| <= 1."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(
            inputs, outputs, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
        )
        nn.init.uniform_(self.weight, 0, 0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H / stride, W / stride)."""
        return functional.conv2d(x, self.binary_weight(), None, self.stride, self.padding)

    def binary_weight(self) -> Tensor:
        """The weights that the convolution uses, two values per output channel."""
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True).detach()
        passed = self.weight.clamp(-1, 1)
        return (scale * _sign(self.weight)).detach() + (passed - passed.detach())


class ReActBlock(nn.Module):
    """A 3x3 and a 1x1 binary convolution, each with its own shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        assert outputs in (inputs, 2 * inputs)
        self.sign1, self.sign2 = RSign(inputs), RSign(inputs)
        self.spatial = BinaryConv2d(inputs, inputs, 3, stride)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.shortcut = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.act1, self.act2 = RPReLU(inputs), RPReLU(outputs)
        # channels double by two copies side by side, so that each keeps a shortcut
        copies = outputs // inputs
        self.pointwise = nn.ModuleList(BinaryConv2d(inputs, inputs, 1) for _ in range(copies))
        self.norm2 = nn.ModuleList(nn.BatchNorm2d(inputs) for _ in range(copies))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        x = self.act1(self.norm1(self.spatial(self.sign1(x))) + self.shortcut(x))
        signs = self.sign2(x)
        branches = [
            norm(conv(signs)) + x for conv, norm in zip(self.pointwise, self.norm2, strict=True)
        ]
        out: Tensor = self.act2(torch.cat(branches, dim=1))
        return out


class ReActNet(nn.Module):
    """ReActNet-A, or a smaller one by its channels; `forward_features`, `forward_head`, `reset_classifier` as
    timm's."""

    def __init__(
        self,
        num_classes: int = 1000,
        channels: tuple[int, ...] = CHANNELS,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = channels[-1]
        self.num_classes, self.drop_rate = num_classes, drop_rate
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, channels[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels[0]),
        )
        widths = list(itertools.pairwise(channels))
        # MobileNetV1 halves the sides where channels double, but for its first block
        strides = [2 if nth and one != two else 1 for nth, (one, two) in enumerate(widths)]
        self.blocks = nn.Sequential(
            *(
                ReActBlock(one, two, stride)
                for (one, two), stride in zip(widths, strides, strict=True)
            )
        )
        self.fc: nn.Module
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D, S / 32, S / 32)."""
        features: Tensor = self.blocks(self.stem(x))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, D, h, w) -> (B, C) logits, or (B, D) features before the classifier."""
        pooled = x.mean((2, 3))
        if pre_logits:
            return pooled
        logits: Tensor = self.fc(functional.dropout(pooled, self.drop_rate, self.training))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh last layer; none with 0 classes."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def reactnet_a(num_classes: int = 1000, **options: Any) -> ReActNet:  # noqa: ANN401 - as timm's factories
    """The paper's network: 29 M real parameters in training, 4.82 G binary and 12 M real multiplications at 224."""
    if "channels" in options:
        options["channels"] = tuple(options["channels"])
    return ReActNet(num_classes=num_classes, **options)


def _sign(x: Tensor) -> Tensor:
    """-1 or 1; zero counts as positive, since a binary value cannot be zero."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
