"""Frozen features: a network without its classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from labelstore.errors import UsageError


def without_classifier(model: nn.Module, input_size: int) -> tuple[nn.Module, int]:
    """A copy that returns (B, D) features, and D: timm's `reset_classifier`, or the last layer of as many outputs.

    That is the linear layer or convolution which the forward pass calls last with as many outputs as the network has,
    or the last linear layer that it calls at all. UsageError for a network without any.
    """
    bare = copy.deepcopy(model).eval()
    image = torch.zeros(1, 3, input_size, input_size)
    reset = getattr(bare, "reset_classifier", None)
    if callable(reset):
        reset(0)
    else:
        name = _last_layer(bare, image)
        if name is None:
            raise UsageError(
                "this network has no linear classifier to take out: give it a method reset_classifier(num_classes)"
            )
        bare.set_submodule(name, nn.Identity())
    with torch.no_grad():
        features = bare.eval()(image)
    if features.ndim != 2:
        raise UsageError(
            f"without its classifier the network returns {tuple(features.shape)} for one image, features are (1, D)"
        )
    return bare, features.shape[1]


def _last_layer(model: nn.Module, image: Tensor) -> str | None:
    """Name of the classifier by the order in which layers are called, which need not be the one they are made in."""
    called: list[tuple[str, nn.Module, int]] = []

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            axis = -1 if isinstance(module, nn.Linear) else 1
            called.append((name, module, output.shape[axis]))

        return hook

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name and isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    try:
        with torch.no_grad():
            outputs = model(image).shape[-1]
    finally:
        for handle in hooks:
            handle.remove()
    sized = [name for name, _, size in called if size == outputs]
    linear = [name for name, module, _ in called if isinstance(module, nn.Linear)]
    chosen = sized or linear
    return chosen[-1] if chosen else None
