"""What the student is shown and told about a part of a step: normalised, mixed pixels and labels mixed alike."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.loader import CropBatch
from trainer.mixing import Labels, mixture
from trainer.models import Normalise


class OnlineLabels(Protocol):
    """Labels made from what the student sees (vanilla KD, FunMatch)."""

    def labels(self, pixels: Tensor) -> Labels:
        """Normalised, mixed pixels (B, 3, S, S) on the device -> labels of B crops there."""


class StudentView:
    """Turns crops of the loader into what forward pass and loss take."""

    def __init__(
        self, config: TrainConfig, device: torch.device, online: OnlineLabels | None
    ) -> None:
        self._config, self._device, self._online = config, device, online
        self._normalise = Normalise(config.mean, config.std).to(device)

    def __call__(
        self, crops: CropBatch, rng: np.random.Generator
    ) -> tuple[Tensor, Labels, Labels | None]:
        """Pixels (B, 3, S, S), labels of B crops, and their ground truth where the loss asks for it."""
        config = self._config
        crops = crops.to(self._device)
        pixels = self._normalise(crops.pixels)
        labels: Labels = (crops.class_ids, crops.probs, crops.rest)
        truth = self._ground_truth(crops.ground_truth) if config.ground_truth_weight else None
        mixed = mixture(
            config,
            rng,
            size=len(crops),
            side=config.input_size,
            crops_per_image=crops.crops_per_image,
            device=self._device,
        )
        if mixed is not None:
            pixels = mixed.pixels(pixels)
            truth = None if truth is None else mixed.labels(truth)
            # an online teacher labels what is mixed already
            labels = labels if self._online is not None else mixed.labels(labels)
        if self._online is not None:
            labels = self._online.labels(pixels)
        return pixels, labels, truth

    def _ground_truth(self, class_ids: Tensor) -> Labels:
        """Classes (B,) -> labels (B, 1): 1 - s + s/C at the class, s/C elsewhere."""
        s = self._config.label_smoothing
        elsewhere = s / (self._config.num_classes or 1)
        ones = torch.ones(len(class_ids), device=class_ids.device)
        return class_ids.unsqueeze(1), ones.unsqueeze(1) * (1 - s + elsewhere), ones * elsewhere
