"""Grad-CAM (Selvaraju et al., ICCV 2017, by captum) and guided backpropagation of one crop.

Grad-CAM: ReLU(sum over channels of the mean gradient times the activation) at one feature map. Guided
backpropagation: the gradient by the pixels, where rectifiers pass only what is positive.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labelstore.errors import RejectedInput, UsageError
from trainer.attention.feature_maps import AsMap, FeatureMap, choose_map, feature_maps, plain_copy
from trainer.attention.guided import guided_gradient
from trainer.config import TrainConfig
from trainer.models import Normalise


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What in one crop speaks for a class."""

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
