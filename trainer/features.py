"""Frozen features: a network without its classifier."""

from __future__ import annotations

import copy

import torch
from torch import nn

from labelstore.errors import UsageError


def without_classifier(model: nn.Module, input_size: int) -> tuple[nn.Module, int]:
    """A copy that returns (B, D) features, and D: timm's `reset_classifier`, or the last linear layer taken out.

    UsageError for a network of which neither can be done.
    """
    bare = copy.deepcopy(model)
    reset = getattr(bare, "reset_classifier", None)
    if callable(reset):
        reset(0)
    else:
        linear = [name for name, module in bare.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UsageError(
                "this network has no linear classifier to take out: give it a method reset_classifier(num_classes)"
            )
        bare.set_submodule(linear[-1], nn.Identity())
    with torch.no_grad():
        features = bare.eval()(torch.zeros(1, 3, input_size, input_size))
    if features.ndim != 2:
        raise UsageError(
            f"without its classifier the network returns {tuple(features.shape)} for one image, features are (1, D)"
        )
    return bare, features.shape[1]
