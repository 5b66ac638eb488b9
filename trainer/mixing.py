"""SelfMix (FerKD 3.4), Mixup and CutMix on sparse labels: two labels become one, nothing becomes dense.

With weight w the mixed label is w * label + (1 - w) * partner's label. In sparse form that is both lists of
classes one after the other, 2 K of them: `rest` mixes, and every entry keeps its weighted excess over it,

    rest = w rest_a + (1 - w) rest_b,    p_k = rest + w (p_ak - rest_a)  or  rest + (1 - w) (p_bk - rest_b)

so a class in both lists gets both excesses, as `trainer.losses` reads it.
The loss of it equals the weighted sum of the two losses.

Batches hold the m crops of an image in consecutive rows. Randomness comes in as a NumPy generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import TrainConfig
from trainer.label_tensors import LabelTensors

Drawn = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64] | None]
"""Partner, weight and box of every crop."""


def mixing_rng(seed: int, step: int, *more: int) -> np.random.Generator:
    """The generator of one batch: keyed by seed and step, then rank and accumulation step where there are any."""
    # the first word keeps it apart from whatever else is keyed by [seed, step]
    return np.random.default_rng([0x6D6978, seed, step, *more])


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Partners and shares of mixed crops; pixels and every kind of labels are mixed by one of these."""

    partner: Tensor
    """(B,) int64 rows."""
    weight: Tensor
    """(B,) float32, share of the crop itself."""
    boxes: Tensor | None
    """(B, 4) top, left, bottom, right of what the partner's pixels replace; None blends all pixels."""

    def pixels(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S), mixed: a new tensor."""
        if self.boxes is None:
            return torch.lerp(pixels[self.partner], pixels, self.weight.view(-1, 1, 1, 1))
        top, left, bottom, right = self.boxes.view(-1, 4, 1).unbind(1)
        line = torch.arange(pixels.shape[-1], device=pixels.device)
        rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)
        inside = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
        return torch.where(inside, pixels[self.partner], pixels)

    def labels(self, labels: LabelTensors) -> LabelTensors:
        """Sparse labels (B, K), mixed: (B, 2 K), or (B, K) where all crops share one row of ids."""
        return mixed_labels(labels, self.partner, self.weight)


def mixture(
    config: TrainConfig,
    rng: np.random.Generator,
    *,
    size: int,
    side: int,
    crops_per_image: int,
    epoch: int = 0,
    device: torch.device | str = "cpu",
) -> Mixture | None:
    """How B = `size` crops of S = `side` pixels are mixed, as the config says; None for not at all.

    A single-crop pass has nothing to selfmix, and a pass that begins with one of the last `mixing_off_epochs`
    (`epoch`) is not mixed.
    """
    if config.mixing_off_epochs and epoch >= config.whole_epochs - config.mixing_off_epochs:
        return None
    prob, m = config.mixing_prob, crops_per_image
    match config.mixing:
        case "none":
            return None
        case "selfmix":
            if m == 1:
                return None
            alpha = config.cutmix_alpha
            drawn = _selfmix(rng, size, side, crops_per_image=m, prob=prob, alpha=alpha)
            return _on(device, drawn)
        case "mixup":
            is_mixup = True
        case "cutmix":
            is_mixup = False
        case "mixup-cutmix":
            is_mixup = rng.random() < 0.5
    if is_mixup:
        return _on(device, _mixup(rng, size, prob=prob, alpha=config.mixup_alpha))
    return _on(device, _cutmix(rng, size, side, prob=prob, alpha=config.cutmix_alpha))


def _selfmix(
    rng: np.random.Generator,
    size: int,
    side: int,
    *,
    crops_per_image: int,
    prob: float,
    alpha: float,
) -> Drawn:
    """CutMix among the m crops of each image, never across images (FerKD 3.4, Fig. 8).

    Each image draws a turn of 1 to m - 1, its box and weight; crop j gets the box out of crop j + turn, so
    every crop is a partner once. An image is left alone with probability 1 - prob. The paper does not say
    which mixing it uses inside an image; its supplement pairs SelfMix's settings with CutMix's.
    """
    m = crops_per_image
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
    return partner, np.repeat(weights, m), np.repeat(boxes, m, 0)


def _mixup(rng: np.random.Generator, size: int, *, prob: float, alpha: float) -> Drawn | None:
    """Mixup (Zhang et al. 2018): one weight for the batch from Beta(alpha, alpha), partners by permutation."""
    partner = rng.permutation(size)
    weight = float(rng.beta(alpha, alpha))
    if rng.random() >= prob:
        return None
    return partner, np.full(size, weight), None


def _cutmix(
    rng: np.random.Generator, size: int, side: int, *, prob: float, alpha: float
) -> Drawn | None:
    """CutMix (Yun et al. 2019): one box for the batch, partners by permutation; the weight is the area kept."""
    partner = rng.permutation(size)
    boxes, weights = _boxes(rng, 1, side, alpha)
    if rng.random() >= prob:
        return None
    return partner, np.repeat(weights, size), np.repeat(boxes, size, 0)


def mixed_labels(labels: LabelTensors, partner: Tensor, weight: Tensor) -> LabelTensors:
    """weight * label + (1 - weight) * label[partner]: (B, K) -> (B, 2 K) classes. partner (B,), weight (B,).

    Labels of which all crops share one row of ids in memory (stride 0: dense ones) keep their K classes.
    """
    class_ids, probs, rest = labels
    excess = probs - rest.unsqueeze(-1)
    mixed_rest = weight * rest + (1 - weight) * rest[partner]
    w = weight.unsqueeze(-1)
    if class_ids.stride(0) == 0:
        # dense labels: every crop has the same ids, so the lists need not be joined
        return class_ids, w * probs + (1 - w) * probs[partner], mixed_rest
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


def _on(device: torch.device | str, drawn: Drawn | None) -> Mixture | None:
    if drawn is None:
        return None
    partner, weights, boxes = drawn
    return Mixture(
        partner=torch.from_numpy(partner).to(device),
        # float32 before they travel: mps has no float64
        weight=torch.from_numpy(weights).float().to(device),
        boxes=None if boxes is None else torch.from_numpy(boxes).to(device),
    )
