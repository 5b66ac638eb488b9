"""A phase of a run as the training loop needs it: pixels normalised and mixed, labels mixed alike, and the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.config import Autocast, TrainConfig
from trainer.label_tensors import LabelTensors, ground_truth_labels, label_tensors
from trainer.loader import CropBatch
from trainer.losses import DistillationLoss, loss_of_labels
from trainer.mixing import mixture
from trainer.models import Normalise
from trainer.run_state import RunState
from trainer.shared_step import parallel_model
from trainer.training_data import RunPhase


class OnlineLabels(Protocol):
    """Labels made from what the student sees (vanilla KD, FunMatch)."""

    def labels(self, pixels: Tensor) -> LabelTensors:
        """Normalised, mixed pixels (B, 3, S, S) on the device -> labels of B crops there."""


class StudentView:
    """Turns crops of the loader into what forward pass and loss take."""

    def __init__(
        self, config: TrainConfig, device: torch.device, online: OnlineLabels | None
    ) -> None:
        self._config, self._device, self._online = config, device, online
        self._normalise = Normalise(config.mean, config.std).to(device)
        self._memory_format = (
            torch.channels_last if config.channels_last else torch.contiguous_format
        )

    def __call__(
        self, crops: CropBatch, rng: np.random.Generator, *, epoch: int = 0
    ) -> tuple[Tensor, LabelTensors, LabelTensors | None]:
        """Pixels (B, 3, S, S), labels of B crops, and their ground truth where the loss asks for it.

        `epoch` is the one that the crops' pass begins with.
        """
        config = self._config
        truth = None
        if config.ground_truth_weight:
            classes = crops.ground_truth.cpu().numpy()
            known = ground_truth_labels(classes, config.num_classes or 1, config.label_smoothing)
            truth = label_tensors(known, self._device)
        crops = crops.to(self._device)
        # the loader's batches are channels-last, whatever the network wants
        pixels = self._normalise(crops.pixels).contiguous(memory_format=self._memory_format)
        labels = crops.labels
        mixed = mixture(
            config,
            rng,
            epoch=epoch,
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


@dataclass(frozen=True, kw_only=True)
class PhaseTraining:
    """One phase as the training loop needs it."""

    view: StudentView
    criterion: DistillationLoss

    @classmethod
    def of(
        cls,
        phase: RunPhase,
        state: RunState,
        device: torch.device,
        *,
        amp: Autocast,
        note: Callable[[str], None],
    ) -> PhaseTraining:
        """As the phase's settings say; `amp` is the one in force."""
        config = dataclasses.replace(phase.config, amp=amp)
        discriminator = state.discriminator if config.discriminator else None
        return cls(
            view=StudentView(config, device, _online_labels(config, device, note)),
            criterion=DistillationLoss(
                loss_of_labels(config),
                config.ground_truth_weight,
                None
                if discriminator is None
                else parallel_model(discriminator, state.ranks, device),
            ),
        )


def _online_labels(
    config: TrainConfig, device: torch.device, note: Callable[[str], None]
) -> OnlineLabels | None:
    """The teacher that labels what the student sees, with labels="teacher"."""
    if config.labels != "teacher":
        return None
    from trainer.online_teacher import OnlineTeacher

    return OnlineTeacher(config, device, note)
