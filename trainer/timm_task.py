"""Stored labels as a training task of timm's own loop (`timm.task`), instead of its `LogitDistillationTask`.

timm's loop gives a task (input, target) from its loader, so that a sparse label travels in one target tensor:
`pack_labels` makes it where items are collated, and the task takes it apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.task import ClassificationTask
from torch import Tensor, nn

from trainer.losses import SparseSoftCrossEntropy


def pack_labels(batch: Mapping[str, Tensor]) -> Tensor:
    """`class_ids` (B, K), `probs` (B, K) and `rest` (B,) of a batch -> one float32 target (B, 2 K + 1).

    Class ids are exact up to 2^24 classes.
    """
    ids, probs, rest = (batch[name].float() for name in ("class_ids", "probs", "rest"))
    return torch.cat([ids, probs, rest[:, None]], dim=1)


class StoredLabelsTask(ClassificationTask):
    """The `kd_loss` of timm's `LogitDistillationTask` with the teacher's labels read and not computed.

    KL(labels, softmax(logits / T)) T^2, the mean over B crops. Labels are at T: a `CropDataset` made with
    `temperature=T`, or a batch asked for at T. Of `full` labels the loss is that of the online teacher on the same
    crops; other codecs keep less.
    """

    def __init__(
        self,
        model: nn.Module,
        temperature: float = 1.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(
            model,
            criterion=SparseSoftCrossEntropy(temperature, kl=True),
            device=device,
            dtype=dtype,
            verbose=verbose,
        )

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Pixels (B, 3, S, S) and packed labels (B, 2 K + 1) -> `loss` and `output`, logits (B, C)."""
        output = self.trainable_module(input)
        kept = target.shape[1] // 2
        ids, probs, rest = target[:, :kept], target[:, kept : 2 * kept], target[:, -1]
        return {"loss": self.criterion(output, ids, probs, rest), "output": output}
