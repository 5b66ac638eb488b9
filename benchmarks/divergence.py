"""How far a recovered label is from the teacher's: the softmax of its outputs, and the Kullback-Leibler divergence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """softmax(logits / T) over the last axis, in float64: what labels are compared with."""
    scaled = logits.astype(np.float64) / temperature
    probs = np.exp(scaled - scaled.max(-1, keepdims=True))
    softened: NDArray[np.float64] = probs / probs.sum(-1, keepdims=True)
    return softened


def kl(true: NDArray[np.float64], found: NDArray[np.float32]) -> NDArray[np.float64]:
    """sum p log(p / q) of labels (..., C), in nats: (...)."""
    logs = np.log(np.maximum(true, 1e-300)) - np.log(np.maximum(found, 1e-30))
    divergence: NDArray[np.float64] = (true * logs).sum(-1)
    return divergence
