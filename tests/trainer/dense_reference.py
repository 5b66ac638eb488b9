"""Labels with all their classes, which training never makes: what its sparse ones are compared with."""

from __future__ import annotations

from torch import Tensor, nn


def dense_labels(class_ids: Tensor, probs: Tensor, rest: Tensor, num_classes: int) -> Tensor:
    """Sparse labels (B, K), (B, K), (B,) -> (B, C): `rest` everywhere, plus p_k - rest at each id."""
    dense = rest.unsqueeze(-1).expand(-1, num_classes).clone()
    return dense.scatter_add_(1, class_ids.long(), probs - rest.unsqueeze(-1))


def soft_cross_entropy(logits: Tensor, probs: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits (B, C), dense labels (B, C) -> torch's cross-entropy, times T^2 (Hinton et al. 2015)."""
    return nn.functional.cross_entropy(logits / temperature, probs) * temperature**2
