"""Soft cross-entropy (FerKD Eq. 2, "SCE"), dense and computed straight from sparse labels.

A sparse label of one crop is K class ids with probabilities, and `rest`, the probability of each class that
is not listed. With q = softmax(logits) and marginal smoothing (FKD Eq. 5) the loss never needs the C classes
of a label:

    -sum_c p_c log q_c = -[ sum_k (p_k - rest) log q_k  +  rest * sum_c log q_c ]

An entry adds p_k - rest to its class, so a class listed twice gets both excesses (mixed labels are such) and
an entry with p_k = rest adds nothing, whatever its class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SparseSoftCrossEntropy(nn.Module):
    """Mean over B crops of -sum p log q, from logits (B, C) and sparse labels.

    `temperature` T divides the logits; the loss is multiplied by T^2, so that its gradient keeps its size
    (Hinton et al. 2015). Labels are taken as they are: re-temper them when they are recovered.

    >>> loss = SparseSoftCrossEntropy()
    >>> logits = torch.tensor([[2.0, 0.0, 0.0]])
    >>> label = torch.tensor([[0]]), torch.tensor([[0.5]]), torch.tensor([0.25])
    >>> dense = soft_cross_entropy(logits, torch.tensor([[0.5, 0.25, 0.25]]))
    >>> torch.testing.assert_close(loss(logits, *label), dense)
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, logits: Tensor, class_ids: Tensor, probs: Tensor, rest: Tensor) -> Tensor:
        """Logits (B, C), class_ids (B, K) integers, probs (B, K), rest (B,) -> scalar, float32."""
        log_q = _log_softmax(logits, self.temperature)
        rest = rest.float()
        excess = probs.float() - rest.unsqueeze(-1)
        kept = (excess * log_q.gather(-1, class_ids.long())).sum(-1)
        loss = -(kept + rest * log_q.sum(-1)).mean()
        return loss * self.temperature**2

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"temperature={self.temperature}"


class SoftCrossEntropy(nn.Module):
    """Mean over B crops of -sum p log q, from logits (B, C) and dense labels (B, C); T as in the sparse one."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, logits: Tensor, probs: Tensor) -> Tensor:
        """Logits (B, C), probs (B, C) -> scalar, float32."""
        return soft_cross_entropy(logits, probs, self.temperature)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"temperature={self.temperature}"


def soft_cross_entropy(logits: Tensor, probs: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits (B, C), dense labels (B, C) -> scalar mean over B, float32."""
    log_q = _log_softmax(logits, temperature)
    return -(probs.float() * log_q).sum(-1).mean() * temperature**2


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    # float32 also under autocast: bf16 has 8 bits for a sum over C terms
    logits = logits.float()
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
