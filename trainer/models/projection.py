"""MoCo v2's projection head, S2-BNN's on teacher and student: a hidden layer below the outputs, and unit length.

In place of a network's linear classifier: q = normalise(W2 relu(W1 features)), whose softmax is taken of q / T.
The hidden layer is as wide as the features. Probes take the whole head off, as they take a classifier off.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from labelstore.errors import UsageError


class UnitLength(nn.Module):
    """(B, C) -> the same directions at length 1, in float32."""

    def forward(self, outputs: Tensor) -> Tensor:
        """(B, C) -> (B, C) float32; zeros stay zeros."""
        return functional.normalize(outputs.float(), dim=1)


def add_projection_head(model: nn.Module, *, unit_length: bool = True) -> None:
    """Put the head where the network's linear classifier is, with its number of outputs, weights as torch draws them.

    Without `unit_length` the outputs are the last layer's own, as an embedding of any length has them.

    UsageError for a network without timm's `get_classifier` and `reset_classifier`, or whose classifier is not one
    linear layer.
    """
    get = getattr(model, "get_classifier", None)
    classifier = get() if callable(get) else None
    if not isinstance(classifier, nn.Linear) or not callable(
        getattr(model, "reset_classifier", None)
    ):
        raise UsageError(
            f"projection_head on {type(model).__name__}: it takes the place of one linear layer that "
            "get_classifier returns and reset_classifier takes off, as timm's networks have it; choose such a network"
        )
    (name,) = [name for name, module in model.named_modules() if module is classifier]
    width, outputs = classifier.in_features, classifier.out_features
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)]
    head = nn.Sequential(*layers, *([UnitLength()] if unit_length else []))
    model.set_submodule(name, head)
