"""A classifier's head applied to every cell of its last features: logits of a whole image as a map (ReLabel 3.2).

timm networks split into `forward_features` and `forward_head`. Each cell goes through `forward_head` as a map of
one cell, so that pooling does nothing and everything else (norms, hidden layers, the classifier) happens as in
the network: the classifier as a 1 x 1 convolution. Where the head is linear after the mean over cells, the mean of
the map is the network's own output.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.codecs import LabelMap
from labelstore.codecs.base import LabelCodec
from labelstore.errors import RejectedInput
from labelstore.teachers.teacher import Teacher


class DenseHead(nn.Module):
    """(B, 3, S, S) normalised float -> (B, H, W, C) logits, of a timm network with a map of features."""

    def __init__(self, network: nn.Module, *, channels_first: bool) -> None:
        super().__init__()
        self.network: Any = network
        self.channels_first = channels_first

    def forward(self, crops: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, H, W, C)."""
        features = self.network.forward_features(crops)
        if self.channels_first:
            features = features.permute(0, 2, 3, 1)
        size, height, width, depth = features.shape
        cells = features.reshape(-1, 1, 1, depth)
        if self.channels_first:
            cells = cells.permute(0, 3, 1, 2)
        logits: Tensor = self.network.forward_head(cells)
        return logits.reshape(size, height, width, -1)


def with_dense_head(teacher: Teacher, codec: LabelCodec) -> tuple[Teacher, LabelCodec]:
    """For label maps the teacher with a dense head and the codec with the map's size; for others both as they are.

    RejectedInput for a teacher whose features are no map, such as a ViT's tokens.
    """
    if not isinstance(codec, LabelMap):
        return teacher, codec
    size = teacher.row.input_size
    head = dense_head(teacher)
    with torch.inference_mode():
        device = next((p.device for p in teacher.module.parameters()), torch.device("cpu"))
        _, height, width, _ = head(torch.zeros(1, 3, size, size, device=device)).shape
    codec = replace(codec, height=height, width=width, image_size=size)
    return replace(teacher, module=head), codec


def dense_head(teacher: Teacher) -> DenseHead:
    """The teacher's head for every cell. RejectedInput where there is none."""
    network: Any = teacher.module
    name = teacher.row.source
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        raise _refusal(name, "it is no timm network, whose features and head can be told apart")
    size = teacher.row.input_size
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        image = torch.zeros(1, 3, size, size, device=device)
        features = network.forward_features(image)
        if not isinstance(features, Tensor) or features.ndim != 4:
            shape = tuple(features.shape) if isinstance(features, Tensor) else "several"
            raise _refusal(name, f"its features are {shape}, not a map of rows and columns")
        for channels_first in _layouts(network, features):
            head = DenseHead(network, channels_first=channels_first)
            try:
                logits = head(image)
            except (RuntimeError, ValueError, IndexError):
                continue
            if logits.shape[-1] == teacher.row.num_classes and logits.shape[0] == 1:
                return head.eval()
    raise _refusal(name, "its head does not take one cell of its features")


def _layouts(network: Any, features: Tensor) -> list[bool]:  # noqa: ANN401 - timm's attributes
    """Whether channels come first in a map of features: as the network states it, else what its depth allows."""
    stated = getattr(network, "output_fmt", None)
    if stated is not None:
        return [getattr(stated, "value", stated) == "NCHW"]
    depth = getattr(network, "num_features", None)
    return [first for first, axis in ((True, 1), (False, 3)) if features.shape[axis] == depth]


def _refusal(name: str, why: str) -> RejectedInput:
    return RejectedInput(
        f"{name} has no dense head for label maps: {why}; choose a convolutional timm network, or `compression=ms`"
    )
