"""Grad-CAM (Selvaraju et al., ICCV 2017, by captum) and guided backpropagation of one crop.

Grad-CAM: ReLU(sum over channels of the mean gradient times the activation) at one feature map. Guided
backpropagation: the gradient by the pixels, where rectifiers pass only what is positive.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from labelstore.errors import RejectedInput, UsageError
from trainer.attention.feature_maps import AsMap, FeatureMap, choose_map, feature_maps, plain_copy
from trainer.config import TrainConfig
from trainer.models import Normalise


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The evidence for a class in one crop."""

    class_id: int
    probability: float
    """Probability of that class, softmax at T = 1."""
    predicted: int
    """Class with the largest logit."""
    predicted_probability: float
    feature_map: FeatureMap
    cam: NDArray[np.float32]
    """(h, w) Grad-CAM, not negative; all zero where nothing speaks for the class."""
    guided: NDArray[np.float32]
    """(S, S, 3) guided backpropagation, by normalised pixels."""
    rectifiers: int
    """Calls of ReLU and ReLU6; with none, guided backpropagation is the plain gradient."""
    others: tuple[str, ...]
    """Other activations that the network calls, by name; the gradient passes them as it is."""


def attend(
    model: nn.Module,
    crop: Tensor,
    config: TrainConfig,
    *,
    layer: str | None = None,
    class_id: int | None = None,
    device: torch.device | str = "cpu",
    name: str = "the network",
) -> Attention:
    """Both maps of uint8 pixels (3, S, S), for the predicted class or `class_id`; the network stays as it is.

    `layer` names the module whose map Grad-CAM takes, the last one if None. UsageError for a class or a layer that the
    network does not have, RejectedInput where it does not put out finite numbers.
    """
    attributions = _captum()
    bare = plain_copy(model).to(device)
    x = Normalise(config.mean, config.std).to(device)(crop.unsqueeze(0).to(device))
    with torch.no_grad():
        logits = bare(x).float()[0]
    if not bool(torch.isfinite(logits).all()):
        raise RejectedInput(f"{name}: its outputs are not finite: take an earlier checkpoint")
    probs = logits.softmax(0)
    predicted = int(logits.argmax())
    target = predicted if class_id is None else class_id
    if not 0 <= target < len(logits):
        raise UsageError(
            f"`class={target}`: {name} has {len(logits)} classes, 0 to {len(logits) - 1}"
        )
    chosen = choose_map(feature_maps(bare, x, target), layer, name)
    wrapped = AsMap(bare.get_submodule(chosen.layer), chosen)
    bare.set_submodule(chosen.layer, wrapped)
    cam = attributions.LayerGradCam(bare, wrapped.map).attribute(
        x, target=target, relu_attributions=True
    )
    guided, activations = guided_gradient(bare, x, target)
    return Attention(
        class_id=target,
        probability=float(probs[target]),
        predicted=predicted,
        predicted_probability=float(probs[predicted]),
        feature_map=chosen,
        cam=cam[0, 0].detach().float().cpu().numpy(),
        guided=guided[0].detach().float().permute(1, 2, 0).cpu().numpy(),
        rectifiers=activations.rectifiers,
        others=tuple(activations.others),
    )


def _captum() -> Any:  # noqa: ANN401 - an optional module
    try:
        with warnings.catch_warnings():
            # of its own imports
            warnings.simplefilter("ignore")
            from captum import attr
    except ImportError as error:
        raise UsageError(
            "attention maps need captum: pip install 'labelstore[attention]'"
        ) from error
    return attr


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
    rectifiers = GuidedRectifiers()
    with torch.enable_grad(), rectifiers:
        score = model(pixels)[0, class_id]
    (gradient,) = torch.autograd.grad(score, pixels)
    return gradient, rectifiers


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
    """The cut-off of a call of a rectifier; None for a call of anything else."""
    if func is not functional.hardtanh:
        return _RECTIFIERS.get(func)
    # nn.ReLU6 calls this one, with 0 and 6
    given = {**dict(zip(("input", "min_val", "max_val"), args, strict=False)), **named}
    return float(given.get("max_val", 1.0)) if given.get("min_val", -1.0) == 0 else None
