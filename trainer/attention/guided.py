"""Guided backpropagation (Springenberg et al., 2015) through every rectifier of a network, and the names of the others.

A rectifier is max(0, x), also cut off at the top (ReLU6): its gradient passes where its input lies on the slope and the
gradient itself is positive. Rectifiers are found as they are called, so that a function in a network's code counts as
much as a layer of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_RECTIFIERS: Mapping[Any, float] = {
    functional.relu: math.inf,
    functional.relu_: math.inf,
    torch.relu: math.inf,
    torch.relu_: math.inf,
    Tensor.relu: math.inf,
    Tensor.relu_: math.inf,
    functional.relu6: 6.0,
}
"""Functions that are max(0, x), and where they are cut off."""

_OTHERS: Mapping[Any, str] = {
    functional.silu: "SiLU",
    functional.gelu: "GELU",
    functional.hardswish: "Hardswish",
    functional.mish: "Mish",
    functional.elu: "ELU",
    functional.elu_: "ELU",
    functional.selu: "SELU",
    functional.celu: "CELU",
    functional.softplus: "Softplus",
    functional.leaky_relu: "LeakyReLU",
    functional.leaky_relu_: "LeakyReLU",
    functional.prelu: "PReLU",
    functional.rrelu: "RReLU",
    functional.hardtanh: "Hardtanh",
    functional.threshold: "Threshold",
}
"""Activations that pass some of what is negative: guided backpropagation has no rule for them."""

_IN_PLACE = (functional.relu_, torch.relu_, Tensor.relu_)


class GuidedRectifiers(TorchFunctionMode):
    """While it is active, rectifiers of a forward pass get the guided backward pass; all activations are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.rectifiers = 0
        """Calls of a rectifier."""
        self.others: dict[str, None] = {}
        """Names of the activations that are none, in the order of their first calls."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever torch's function returns
        """torch's hook: called with every function of torch that the network calls."""
        named = dict(kwargs or {})
        if (top := _cut_off(func, args, named)) is not None:
            self.rectifiers += 1
            x = args[0] if args else named["input"]
            passed: Tensor = _Guided.apply(x, top)
            return x.copy_(passed) if func in _IN_PLACE or named.get("inplace") else passed
        if (name := _OTHERS.get(func)) is not None:
            self.others[name] = None
        return func(*args, **named)


def guided_gradient(model: nn.Module, x: Tensor, class_id: int) -> tuple[Tensor, GuidedRectifiers]:
    """The guided gradient of a class's score by the pixels x (1, 3, S, S), and what was found on the way."""
    pixels = x.detach().clone().requires_grad_()
    found = GuidedRectifiers()
    with torch.enable_grad(), found:
        score = model(pixels)[0, class_id]
    (gradient,) = torch.autograd.grad(score, pixels)
    return gradient, found


class _Guided(torch.autograd.Function):
    """min(max(0, x), top), and a gradient that is cut at zero too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float) -> Tensor:  # noqa: ANN401 - torch's context
        y = x.clamp(0, top)
        ctx.save_for_backward(y)
        ctx.top = top
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (y,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * ((y > 0) & (y < ctx.top)), None


def _cut_off(
    func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]
) -> float | None:
    """Where a call of a rectifier is cut off; None for a call of anything else."""
    if func is not functional.hardtanh:
        return _RECTIFIERS.get(func)
    # nn.ReLU6 calls this one, with 0 and 6
    given = {**dict(zip(("input", "min_val", "max_val"), args, strict=False)), **named}
    return float(given.get("max_val", 1.0)) if given.get("min_val", -1.0) == 0 else None
