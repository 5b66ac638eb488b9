"""Soft cross-entropy (FerKD Eq. 2, "SCE"), computed straight from sparse labels, and what is made of it.

A sparse label of one crop is K class ids with probabilities, and `rest`, the probability of each class that
is not listed. With q = softmax(logits) and marginal smoothing (FKD Eq. 5) the loss never needs the C classes
of a label:

    -sum_c p_c log q_c = -[ sum_k (p_k - rest) log q_k  +  rest * sum_c log q_c ]

An entry adds p_k - rest to its class, so a class listed twice gets both excesses (mixed labels are such) and
an entry with p_k = rest adds nothing, whatever its class. Dense labels are K = C of them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainer.label_tensors import LabelTensors

if TYPE_CHECKING:
    from trainer.config import TrainConfig


class SparseSoftCrossEntropy(nn.Module):
    """Mean over B crops of -sum p log q, from logits (B, C) and sparse labels.

    `temperature` T divides the logits; the loss is multiplied by T^2, so that its gradient keeps its size
    (Hinton et al. 2015), unless `squared` is off. Labels are taken as they are: re-temper them when they are
    recovered. With `kl` the labels' entropy is subtracted: the value moves, the gradient does not.

    >>> loss = SparseSoftCrossEntropy()
    >>> logits = torch.tensor([[2.0, 0.0, 0.0]])
    >>> label = torch.tensor([[0]]), torch.tensor([[0.5]]), torch.tensor([0.25])
    >>> dense = nn.functional.cross_entropy(logits, torch.tensor([[0.5, 0.25, 0.25]]))
    >>> torch.testing.assert_close(loss(logits, *label), dense)
    """

    def __init__(self, temperature: float = 1.0, *, squared: bool = True, kl: bool = False) -> None:
        super().__init__()
        self.temperature, self.squared, self.kl = temperature, squared, kl

    def forward(self, logits: Tensor, class_ids: Tensor, probs: Tensor, rest: Tensor) -> Tensor:
        """Logits (B, C), class_ids (B, K) integers, probs (B, K), rest (B,) -> scalar, float32."""
        log_q = _log_softmax(logits, self.temperature)
        probs, rest = probs.float(), rest.float()
        excess = probs - rest.unsqueeze(-1)
        kept = (excess * log_q.gather(-1, class_ids.long())).sum(-1)
        loss = -(kept + rest * log_q.sum(-1)).mean()
        if self.kl:
            loss = loss - label_entropy((class_ids, probs, rest), logits.shape[-1]).mean()
        return loss * self.temperature**2 if self.squared else loss

    def extra_repr(self) -> str:
        """Settings, for `print`."""
        return f"temperature={self.temperature}, squared={self.squared}, kl={self.kl}"


class EmbeddingLoss(nn.Module):
    """Mean over B crops of how far outputs are from an embedding: one minus the cosine, or the mean squared error.

    Takes labels as the other losses do: all D values are listed, in any order, and those of mixed crops twice.

    >>> outputs = torch.tensor([[3.0, 0.0]])
    >>> label = torch.tensor([[0, 1]]), torch.tensor([[1.0, 1.0]]), torch.tensor([0.0])
    >>> round(float(EmbeddingLoss("cosine")(outputs, *label)), 4), float(EmbeddingLoss("mse")(outputs, *label))
    (0.2929, 2.5)
    """

    def __init__(self, distance: str) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, outputs: Tensor, class_ids: Tensor, probs: Tensor, rest: Tensor) -> Tensor:
        """Outputs (B, D), indices and values (B, K) of the embeddings, 0 (B,) -> scalar, float32."""
        outputs = outputs.float()
        wanted = torch.zeros_like(outputs).scatter_add(-1, class_ids.long(), probs.float())
        if self.distance == "mse":
            return nn.functional.mse_loss(outputs, wanted)
        return (1 - nn.functional.cosine_similarity(outputs, wanted, dim=-1)).mean()


def loss_of_labels(config: TrainConfig) -> nn.Module:
    """Choose the loss of a config's labels."""
    if config.labels == "embedding":
        return EmbeddingLoss(config.embedding_loss)
    return SparseSoftCrossEntropy(
        config.temperature_in_force,
        squared=config.temperature_squared,
        kl=config.soft_loss == "kl",
    )


class Discriminator(nn.Module):
    """MEAL V2's discriminator: learns, with the student, which probabilities are the student's and which the labels'.

    Three linear layers (C -> C / 8 -> C / 64 -> 2), each with a ReLU, the last one too, and binary cross-entropy on
    both outputs (MEAL V2's release, models/discriminator.py, loss.py). As its script for stored labels does, it is
    shown probabilities and not logits (FKD_train.py:166-173). Nothing is reversed: its loss is added to the student's.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (num_classes, max(num_classes // 8, 1), max(num_classes // 64, 1), 2)
        self.layers = nn.Sequential(
            *(
                layer
                for inputs, outputs in itertools.pairwise(widths)
                for layer in (nn.Linear(inputs, outputs), nn.ReLU())
            )
        )

    def forward(self, logits: Tensor, class_ids: Tensor, probs: Tensor, rest: Tensor) -> Tensor:
        """Logits (B, C) of the student and sparse labels of B crops -> scalar, float32."""
        rest = rest.float().unsqueeze(-1)
        labels = rest.expand(-1, logits.shape[-1]).contiguous()
        labels = labels.scatter_add(-1, class_ids.long(), probs.float() - rest)
        scores = self.layers(torch.cat([logits.float().softmax(-1), labels]))
        truth = torch.eye(2, device=scores.device).repeat_interleave(len(logits), dim=0)
        return nn.functional.binary_cross_entropy_with_logits(scores, truth)


class DistillationLoss(nn.Module):
    """(1 - w) * soft loss of the labels + w * cross-entropy of the ground truth (FKD Eq. 1, FerKD Eq. 1).

    `ground_truth_weight` w is FerKD's alpha and 1 - lambda of FKD. The temperature is the labels' alone. The loss of a
    `discriminator` is added (MEAL V2).
    """

    def __init__(
        self,
        labels_loss: nn.Module,
        ground_truth_weight: float,
        discriminator: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.of_labels = labels_loss
        self.discriminator = discriminator
        self.of_ground_truth = SparseSoftCrossEntropy()
        self.ground_truth_weight = ground_truth_weight

    def forward(
        self, logits: Tensor, labels: LabelTensors, ground_truth: LabelTensors | None
    ) -> Tensor:
        """Logits (B, C), labels and ground truth as sparse labels of B crops -> scalar, float32."""
        w = self.ground_truth_weight
        # a weight of exactly one needs no labels: 0 * inf would be NaN
        loss: Tensor = self.of_labels(logits, *labels) if w < 1 else logits.new_zeros(())
        if ground_truth is not None:
            loss = (1 - w) * loss + w * self.of_ground_truth(logits, *ground_truth)
        if self.discriminator is not None:
            loss = loss + self.discriminator(logits, *labels)
        return loss


def label_entropy(labels: LabelTensors, num_classes: int) -> Tensor:
    """-sum_c p_c log p_c of sparse labels over C classes, (B,); classes may be listed more than once."""
    class_ids, probs, rest = labels
    rest = rest.unsqueeze(-1)
    ids, order = class_ids.long().sort(-1)
    excess = (probs - rest).gather(-1, order)
    # entries of one class lie side by side now: add them up at the first one's number
    is_first = torch.ones_like(ids, dtype=torch.bool)
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    place = is_first.cumsum(-1) - 1
    total = torch.zeros_like(excess).scatter_add_(-1, place, excess)
    # places beyond the last class hold no excess, and so add nothing
    listed = (_p_log_p(rest + total) - _p_log_p(rest)).sum(-1)
    return -(listed + num_classes * _p_log_p(rest).squeeze(-1))


def _p_log_p(probs: Tensor) -> Tensor:
    return probs.xlogy(probs)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    # float32 also under autocast: bf16 has 8 bits for a sum over C terms
    logits = logits.float()
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
