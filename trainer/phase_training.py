"""What varies from phase to phase of a run: what the student is shown and told, and the loss of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.config import Autocast, TrainConfig
from trainer.losses import DistillationLoss, loss_of_labels
from trainer.run_state import RunState
from trainer.shared_step import parallel_model
from trainer.student_view import OnlineLabels, StudentView
from trainer.training_data import RunPhase


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
