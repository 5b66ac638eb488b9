"""Finds the layers of a network that put out a map of the image by running it: no list of networks is needed.

A map has a value per channel and place: (1, D, h, w) of ConvNets, (1, h, w, D) of Swin, (1, prefix + h w, D)
tokens of a ViT. Grad-CAM (Selvaraju et al., ICCV 2017) takes the last one that the class's score depends on; of a
ViT that reads its class token alone, this is the last block's first norm, since later patch tokens lead nowhere.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from labelstore.errors import UsageError

Layout = Literal["channels-first", "channels-last", "tokens"]
NAMED = 8
"""Layers that an error names at most."""


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """The output of one layer as h x w places of D channels."""

    layer: str
    """Name of the module in the network."""
    layout: Layout
    height: int
    width: int
    channels: int
    prefix: int = 0
    """Tokens before those of the patches (class token, registers)."""


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose layers keep what they are given: gradients of overwritten values are lost."""
    bare = copy.deepcopy(model).eval()
    for module in bare.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # activations and dropout have it as a bool
    return bare


def feature_maps(model: nn.Module, crop: Tensor, class_id: int) -> list[FeatureMap]:
    """Layers of a `plain_copy` that the score of a class depends on and whose output is a map, in the order they end.

    `crop` is float32 (1, 3, S, S). All are alike: channels first, or tokens of one width. Maps of one place are
    left out.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:  # noqa: ANN401 - a hook
        def hook(module: nn.Module, given: object, output: object) -> None:
            # a layer that is run twice counts where it ends
            outputs.pop(name, None)
            if isinstance(output, Tensor) and output.requires_grad:
                outputs[name] = output

        return hook

    hooks = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if name]
    try:
        with torch.enable_grad():
            score = model(crop.clone().requires_grad_())[0, class_id]
    finally:
        for handle in hooks:
            handle.remove()
    prefix = getattr(model, "num_prefix_tokens", None)
    found = {name: _as_map(name, output, prefix) for name, output in outputs.items()}
    maps = [each for each in found.values() if each is not None]
    if not maps:
        return []
    last = maps[-1]
    alike = [m for m in maps if m.layout == last.layout and _is_alike(m, last)]
    reached = torch.autograd.grad(score, [outputs[m.layer] for m in alike], allow_unused=True)
    # the score of a network that is dead depends on nothing: then whatever leads to it will do
    depends = [_depends(m, gradient) for m, gradient in zip(alike, reached, strict=True)]
    leads = [gradient is not None for gradient in reached]
    return [m for m, holds in zip(alike, depends if any(depends) else leads, strict=True) if holds]


def choose_map(maps: Sequence[FeatureMap], layer: str | None, name: str) -> FeatureMap:
    """The last map, or that of a layer; UsageError that lists the layers that work in the network called `name`."""
    if not maps:
        raise UsageError(
            f"{name}: none of its layers puts out a map of the image with more than one place; give a ConvNet, a ViT, "
            "or larger images (`input_size`)"
        )
    if layer is None:
        return maps[-1]
    for found in maps:
        if found.layer == layer:
            return found
    # outer layers are what people mean
    outer = sorted(maps, key=lambda m: m.layer.count("."))[:NAMED]
    names = ", ".join(m.layer for m in maps if m in outer)
    more = f" and {len(maps) - len(outer)} more" if len(maps) > len(outer) else ""
    raise UsageError(
        f"`layer={layer}`: no layer of {name} with a map of the image; these work: {names}{more}"
    )


class AsMap(nn.Module):
    """A layer whose output passes through `map` as (1, D, h, w) and goes on as it was."""

    def __init__(self, layer: nn.Module, layout: FeatureMap) -> None:
        super().__init__()
        self.layer, self.layout, self.map = layer, layout, nn.Identity()

    def forward(self, *given: Any, **named: Any) -> Tensor:  # noqa: ANN401 - the layer's own
        """Run the layer, and pass its output through `map`."""
        output: Tensor = self.layer(*given, **named)
        if self.layout.layout == "channels-first":
            first: Tensor = self.map(output)
            return first
        if self.layout.layout == "channels-last":
            last: Tensor = self.map(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return last
        prefix, patches = output[:, : self.layout.prefix], output[:, self.layout.prefix :]
        size = self.layout.channels, self.layout.height, self.layout.width
        passed: Tensor = self.map(patches.transpose(1, 2).reshape(-1, *size))
        return torch.cat([prefix, passed.flatten(2).transpose(1, 2)], dim=1)


def _as_map(layer: str, output: Tensor, prefix: object) -> FeatureMap | None:
    shape = tuple(output.shape)
    if len(shape) == 4 and shape[0] == 1:
        # inputs are square, and so are maps of them
        if shape[2] == shape[3] > 1:
            return FeatureMap(
                layer=layer, layout="channels-first", height=shape[2], width=shape[3], channels=shape[1]
            )  # fmt: skip
        if shape[1] == shape[2] > 1:
            return FeatureMap(
                layer=layer, layout="channels-last", height=shape[1], width=shape[2], channels=shape[3]
            )  # fmt: skip
    if len(shape) == 3 and shape[0] == 1:
        for before in (prefix,) if isinstance(prefix, int) else (0, 1, 2):
            side = isqrt(max(0, shape[1] - before))
            if side > 1 and side * side == shape[1] - before:
                return FeatureMap(
                    layer=layer, layout="tokens", height=side, width=side, channels=shape[2], prefix=before
                )  # fmt: skip
    return None


def _is_alike(feature_map: FeatureMap, last: FeatureMap) -> bool:
    """Queries, keys and values of a transformer are tokens too, but wider: no map of the image."""
    return last.layout != "tokens" or (feature_map.channels, feature_map.prefix) == (
        last.channels,
        last.prefix,
    )


def _depends(found: FeatureMap, gradient: Tensor | None) -> bool:
    if gradient is None:
        return False
    places = gradient[:, found.prefix :] if found.layout == "tokens" else gradient
    return bool((places != 0).any())
