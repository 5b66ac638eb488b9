"""The optimiser, and its learning rate as a pure function of the step (timm's schedulers underneath).

Time is counted in epochs of N crops. With `serrated` the rate is constant within a pass of m epochs (FKD 3.3),
except in passes that begin during warm-up, which follow every step unless `warmup_serrated`: a rise of five epochs
would otherwise be one or two stairs of m epochs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # public, but not in an __all__
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.step_lr import StepLRScheduler
from torch import nn
from torch.optim import Optimizer

from trainer.config import TrainConfig

# timm's "sgd" is Nesterov's, its "momentum" the plain one that torch and FKD call SGD
_TIMM_NAMES = {
    "sgd": "momentum",
    "nesterov": "sgd",
    "adam": "adam",
    "adamw": "adamw",
    "adamp": "adamp",
    "lamb": "lamb",
}

_DECAY_EVERYTHING = ("sgd", "nesterov", "adamp")
"""As the scripts that published results with them do; the others leave biases and norms out, as timm does."""


def create_optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """timm's optimiser over all parameters of the network."""
    optimizer: Optimizer = create_optimizer_v2(
        model,
        opt=_TIMM_NAMES[config.optimizer],
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        filter_bias_and_bn=config.optimizer not in _DECAY_EVERYTHING,
        layer_decay=config.layer_decay,
        betas=config.betas,  # dropped by timm where an optimiser has none
    )
    return optimizer


class LearningRate:
    """Sets an optimiser's learning rate before each step; holds no state, so resuming needs none.

    `passes` lists (crops per image, steps) of every pass of the run. Layer groups (`layer_decay`) keep their
    proportions.
    """

    def __init__(
        self, config: TrainConfig, optimizer: Optimizer, passes: Sequence[tuple[int, int]]
    ) -> None:
        self._passes = passes
        self._first_epochs = list(accumulate((m for m, _ in passes), initial=0))
        self._first_steps = list(accumulate((steps for _, steps in passes), initial=0))
        self._serrated = config.serrated
        # where the rate of a serrated schedule follows every step
        self._smooth_until = 0.0 if config.warmup_serrated else config.warmup_epochs
        self._scheduler = _scheduler(config, optimizer)

    def epoch(self, step: int) -> float:
        """The epoch whose rate step number `step` (from 0, over the whole run) is taken with."""
        nth = min(bisect_right(self._first_steps, step), len(self._passes)) - 1
        crops, steps = self._passes[nth]
        start = self._first_epochs[nth]
        now = start + (step - self._first_steps[nth]) / steps * crops
        if not self._serrated:
            return now
        return start if start >= self._smooth_until else min(now, self._smooth_until)

    def set(self, step: int) -> float:
        """Give the optimiser the rate of that step; returns it as the config means it, without `layer_decay`."""
        self._scheduler.step(self.epoch(step))  # type: ignore[arg-type]  # timm counts in ints, computes in floats
        groups = self._scheduler.optimizer.param_groups
        # the largest scale is 1, or above; the smallest may be nothing to divide by
        group = max(groups, key=lambda group: group.get("lr_scale", 1.0))
        return float(group["lr"]) / float(group.get("lr_scale", 1.0))


def _scheduler(config: TrainConfig, optimizer: Optimizer) -> Scheduler:
    warm_up: Any = {
        "warmup_t": config.warmup_epochs,
        "warmup_lr_init": config.warmup_lr,
        "warmup_prefix": config.warmup_prefix,
    }
    length: Any = config.whole_epochs - config.warmup_epochs * config.warmup_prefix
    match config.scheduler:
        case "cosine":
            length *= config.cosine_eta
            return CosineLRScheduler(optimizer, t_initial=length, lr_min=config.min_lr, **warm_up)
        case "linear":
            return PolyLRScheduler(
                optimizer, t_initial=length, power=1.0, lr_min=config.min_lr, **warm_up
            )
        case "multistep":
            return MultiStepLRScheduler(
                optimizer,
                # timm lets milestone m fall at epoch m - 1
                decay_t=[milestone + 1 for milestone in config.milestones],
                decay_rate=config.decay_rate,
                **warm_up,
            )
        case "step" | "constant":
            return StepLRScheduler(
                optimizer,
                decay_t=config.decay_epochs,
                decay_rate=config.decay_rate if config.scheduler == "step" else 1.0,
                **warm_up,
            )
