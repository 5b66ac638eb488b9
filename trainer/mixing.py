"""SelfMix (FerKD 3.4), Mixup and CutMix on sparse labels: two labels become one, nothing becomes dense.

With weight w the mixed label is w * label + (1 - w) * partner's label. In sparse form that is both lists of
classes one after the other, 2 K of them: `rest` mixes, and every entry keeps its weighted excess over it,

    rest = w rest_a + (1 - w) rest_b,    p_k = rest + w (p_ak - rest_a)  or  rest + (1 - w) (p_bk - rest_b)

so a class in both lists gets both excesses, as `trainer.losses` and `trainer.recover.dense_labels` read it.
The loss of it equals the weighted sum of the two losses.

Batches hold the m crops of an image in consecutive rows. Randomness comes in as a NumPy generator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import TrainConfig

Labels = tuple[Tensor, Tensor, Tensor]
"""class_ids (B, K), probs (B, K), rest (B,)."""


def mixing_rng(seed: int, step: int, *more: int) -> np.random.Generator:
    """The generator of one batch: keyed by seed and step, then rank and accumulation step where there are any."""
    # the first word keeps it apart from whatever else is keyed by [seed, step]
    return np.random.default_rng([0x6D6978, seed, step, *more])


def mix(
    config: TrainConfig, pixels: Tensor, labels: Labels, rng: np.random.Generator
) -> tuple[Tensor, Labels]:
    """Normalised pixels (B, 3, S, S) and their labels, mixed as the config says; new tensors, or the same ones."""
    prob = config.mixing_prob
    match config.mixing:
        case "none":
            return pixels, labels
        case "selfmix":
            m = config.crops_per_image
            return selfmix(
                pixels, labels, rng, crops_per_image=m, prob=prob, alpha=config.cutmix_alpha
            )
        case "mixup":
            chosen = mixup
        case "cutmix":
            chosen = cutmix
        case "mixup-cutmix":
            chosen = mixup if rng.random() < 0.5 else cutmix
    alpha = config.mixup_alpha if chosen is mixup else config.cutmix_alpha
    return chosen(pixels, labels, rng, prob=prob, alpha=alpha)


def selfmix(
    pixels: Tensor,
    labels: Labels,
    rng: np.random.Generator,
    *,
    crops_per_image: int,
    prob: float = 1.0,
    alpha: float = 1.0,
) -> tuple[Tensor, Labels]:
    """CutMix among the m crops of each image, never across images (FerKD 3.4, Fig. 8).

    Each image draws a turn of 1 to m - 1, its box and weight; crop j gets the box out of crop j + turn, so
    every crop is a partner once. An image is left alone with probability 1 - prob. The paper does not say
    which mixing it uses inside an image; its supplement pairs SelfMix's settings with CutMix's.
    """
    m = crops_per_image
    size, side = len(pixels), pixels.shape[-1]
    assert m > 1
    assert size % m == 0
    images = size // m
    turns = rng.integers(1, m, images)
    boxes, weights = _boxes(rng, images, side, alpha)
    alone = rng.random(images) >= prob
    boxes[alone], weights[alone] = 0, 1.0
    inside = np.arange(size) % m
    first = np.arange(size) - inside
    partner = first + (inside + np.repeat(turns, m)) % m
    return _paste(pixels, labels, partner, np.repeat(boxes, m, 0), np.repeat(weights, m))


def mixup(
    pixels: Tensor,
    labels: Labels,
    rng: np.random.Generator,
    *,
    prob: float = 1.0,
    alpha: float = 0.8,
) -> tuple[Tensor, Labels]:
    """Mixup (Zhang et al. 2018): one weight for the batch from Beta(alpha, alpha), partners by permutation."""
    partner = rng.permutation(len(pixels))
    weight = float(rng.beta(alpha, alpha))
    if rng.random() >= prob:
        return pixels, labels
    index = torch.from_numpy(partner).to(pixels.device)
    mixed = torch.lerp(pixels[index], pixels, weight)
    weights = torch.full((len(pixels),), weight, device=pixels.device)
    return mixed, mixed_labels(labels, index, weights)


def cutmix(
    pixels: Tensor,
    labels: Labels,
    rng: np.random.Generator,
    *,
    prob: float = 1.0,
    alpha: float = 1.0,
) -> tuple[Tensor, Labels]:
    """CutMix (Yun et al. 2019): one box for the batch, partners by permutation; the weight is the area kept."""
    size, side = len(pixels), pixels.shape[-1]
    partner = rng.permutation(size)
    boxes, weights = _boxes(rng, 1, side, alpha)
    if rng.random() >= prob:
        return pixels, labels
    return _paste(pixels, labels, partner, np.repeat(boxes, size, 0), np.repeat(weights, size))


def mixed_labels(labels: Labels, partner: Tensor, weight: Tensor) -> Labels:
    """weight * label + (1 - weight) * label[partner]: (B, K) -> (B, 2 K) classes. partner (B,), weight (B,)."""
    class_ids, probs, rest = labels
    excess = probs - rest.unsqueeze(-1)
    mixed_rest = weight * rest + (1 - weight) * rest[partner]
    w = weight.unsqueeze(-1)
    both = torch.cat([w * excess, (1 - w) * excess[partner]], dim=-1)
    return (
        torch.cat([class_ids, class_ids[partner]], dim=-1),
        both + mixed_rest.unsqueeze(-1),
        mixed_rest,
    )


def _boxes(
    rng: np.random.Generator, count: int, side: int, alpha: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Boxes (count, 4) as top, left, bottom, right, and the share of the area that stays, (count,)."""
    cut = np.floor(side * np.sqrt(1 - rng.beta(alpha, alpha, count))).astype(np.int64)
    centre = rng.integers(0, side, (count, 2))
    half = (cut // 2)[:, None]
    start, stop = np.clip(centre - half, 0, side), np.clip(centre + half, 0, side)
    # a box may reach over the edge, so the weight is that of the pixels really replaced
    weight = 1 - np.prod(stop - start, axis=1) / side**2
    return np.concatenate([start, stop], axis=1), weight


def _paste(
    pixels: Tensor,
    labels: Labels,
    partner: NDArray[np.int64],
    boxes: NDArray[np.int64],
    weights: NDArray[Any],
) -> tuple[Tensor, Labels]:
    device, side = pixels.device, pixels.shape[-1]
    index = torch.from_numpy(partner).to(device)
    top, left, bottom, right = torch.from_numpy(boxes).to(device).view(-1, 4, 1).unbind(1)
    line = torch.arange(side, device=device)
    rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)
    inside = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    mixed = torch.where(inside, pixels[index], pixels)
    weight = torch.from_numpy(weights).to(device, torch.float32)
    return mixed, mixed_labels(labels, index, weight)
