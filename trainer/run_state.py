"""The state of a run from step to step, to and from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]  # public, but not in an __all__
from torch import Tensor, nn

from labelstore.errors import LabelStoreError
from trainer.checkpoint import Checkpoint
from trainer.config import Autocast, TrainConfig
from trainer.losses import Discriminator
from trainer.ranks import Ranks
from trainer.schedule import create_optimizer

STEPS_BETWEEN_CHECKS = 50
"""How often the loss is looked at on a GPU: every look waits for the device."""
LAST_EVALUATION = ("top1", "top5")
"""Figures of the last pass that a resumed run still has."""


@dataclass(kw_only=True)
class RunState:
    """Weights, their moving average, optimiser, loss scaler, and the counters of the run and its pass."""

    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ranks: Ranks
    amp: Autocast = "none"
    """Autocast dtype of every forward pass, also of evaluations."""
    discriminator: Discriminator | None = None
    """MEAL V2's, learnt by the same optimiser; None without `discriminator`."""
    step: int = 0
    """Optimiser steps taken over the whole run."""
    loss_sum: float = 0.0
    """Over this rank's crops of the pass in hand."""
    crops: int = 0
    """This rank's crops of the pass in hand."""
    best: float | None = None
    """Largest top-1 of any evaluation, percent."""
    best_ema: float | None = None
    """The same of the averaged weights."""
    last_loss: float = math.nan
    top1: float | None = None
    """Percent after the last pass, None where it had no evaluation."""
    top5: float | None = None
    """The same among the five largest outputs."""
    owed: Mapping[str, float] | None = None
    """Facts of a pass that ended but has no row yet: `pass_index`, `begun` (epochs before it), `lr`, `seconds`."""
    _waiting: Tensor | None = None

    @classmethod
    def of(cls, config: TrainConfig, model: nn.Module, ranks: Ranks) -> RunState:
        """The state before the first step; the network is on its device already."""
        device = next(model.parameters()).device
        optimizer, discriminator = create_optimizer(config, model), None
        if config.discriminator:
            assert config.num_classes is not None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                discriminator = Discriminator(config.num_classes).to(device)
            # at the student's rate, as MEAL V2's release sets all groups alike
            optimizer.add_param_group(
                {"params": [*discriminator.parameters()], "weight_decay": config.weight_decay}
            )
        return cls(
            model=model,
            ema=None if config.ema_decay is None else ModelEmaV3(model, decay=config.ema_decay),
            optimizer=optimizer,
            discriminator=discriminator,
            scaler=torch.amp.GradScaler(device.type, enabled=config.amp == "fp16"),
            ranks=ranks,
            amp=config.amp,
        )

    def is_checked(self) -> bool:
        """Whether this step's figures are looked at."""
        device = next(self.model.parameters()).device
        return device.type == "cpu" or (self.step + 1) % STEPS_BETWEEN_CHECKS == 0

    def check_finite(
        self,
        labels: Tensor | None,
        logits: Tensor | None,
        loss: Tensor,
        gradient_norm: Tensor | None,
    ) -> None:
        """LabelStoreError naming the first quantity of the step in hand that is not finite."""
        quantities = {
            "a label": labels,
            "a weight": None,
            "an output of the network": logits,
            "the training loss": loss,
            # with fp16 the scaler skips such a step, and goes on with a smaller scale
            "the gradient's norm": None if self.scaler.is_enabled() else gradient_norm,
        }
        for name, values in quantities.items():
            if name == "a weight" and (broken := self._broken_weight(logits)) is not None:
                raise _not_finite(f"weight {broken}", self.step)
            if values is not None and not bool(torch.isfinite(values).all()):
                raise _not_finite(name, self.step)

    def _broken_weight(self, logits: Tensor | None) -> str | None:
        """The first parameter that is not finite; looked for only where the outputs are not."""
        if logits is None or bool(torch.isfinite(logits).all()):
            return None
        parameters = self.model.named_parameters()
        return next((name for name, p in parameters if not bool(torch.isfinite(p).all())), None)

    def add_loss(self, loss: Tensor) -> None:
        """Add one micro-batch's loss, summed over its crops, without waiting for the device."""
        self._waiting = loss if self._waiting is None else self._waiting + loss

    def end_step(self, crops: int, *, settle: bool) -> None:
        """Count a step of this rank; `settle` brings the waiting losses to the CPU."""
        self.step += 1
        self.crops += crops
        if settle:
            self.settle()

    def settle(self) -> None:
        """Bring the waiting losses to the CPU; LabelStoreError where they are not finite."""
        if self._waiting is None:
            return
        loss, self._waiting = float(self._waiting), None
        if not math.isfinite(loss):
            raise _not_finite("the training loss", self.step - 1)
        self.loss_sum += loss

    def end_pass(self) -> None:
        """Take the mean loss of the pass over all ranks as the last one."""
        self.settle()
        sums = self.ranks.gathered((self.loss_sum, self.crops))
        crops = sum(count for _, count in sums)
        self.last_loss = sum(loss for loss, _ in sums) / max(crops, 1)
        self.loss_sum, self.crops = 0.0, 0

    def checkpoint(
        self, config: TrainConfig, *, epochs: int, is_whole_pass: bool = False
    ) -> Checkpoint:
        """Everything that continues the run from here; every rank has to call it."""
        self.settle()
        counters = {"last_loss": self.last_loss}
        for name in LAST_EVALUATION:
            if (value := getattr(self, name)) is not None:
                counters[name] = value
        for rank, (loss, crops) in enumerate(self.ranks.gathered((self.loss_sum, self.crops))):
            # each rank's own: float sums in another order would differ in the last digit
            counters |= {f"loss_sum/{rank}": loss, f"crops/{rank}": crops}
        return Checkpoint(
            step=self.step,
            epoch=epochs,
            arch=config.model,
            state_dict=self.model.state_dict(),
            state_dict_ema=None if self.ema is None else self.ema.module.state_dict(),
            optimizer=self.optimizer.state_dict(),
            state_dict_discriminator=(
                None if self.discriminator is None else self.discriminator.state_dict()
            ),
            amp_scaler=self.scaler.state_dict() if self.scaler.is_enabled() else None,
            metric=self.best,
            metric_ema=self.best_ema,
            config=config.to_mapping(),
            counters=counters,
            is_whole_pass=is_whole_pass,
            owed=self.owed,
        )

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, also one of another number of ranks."""
        self.model.load_state_dict(checkpoint.state_dict)
        if self.ema is not None and checkpoint.state_dict_ema is not None:
            self.ema.module.load_state_dict(checkpoint.state_dict_ema)
        if self.discriminator is not None and checkpoint.state_dict_discriminator is not None:
            self.discriminator.load_state_dict(checkpoint.state_dict_discriminator)
        self.optimizer.load_state_dict(dict(checkpoint.optimizer))
        if checkpoint.amp_scaler is not None:
            self.scaler.load_state_dict(dict(checkpoint.amp_scaler))
        self.step = checkpoint.step
        self.best, self.best_ema = checkpoint.metric, checkpoint.metric_ema
        self.owed = checkpoint.owed
        counters = checkpoint.counters
        self.last_loss = counters.get("last_loss", math.nan)
        for name in LAST_EVALUATION:
            setattr(self, name, counters.get(name))
        for name, value in counters.items():
            what, _, rank = name.partition("/")
            if (
                what in ("loss_sum", "crops")
                and int(rank or 0) % self.ranks.world_size == self.ranks.rank
            ):
                setattr(self, what, getattr(self, what) + type(getattr(self, what))(value))


def _not_finite(what: str, step: int) -> LabelStoreError:
    return LabelStoreError(
        f"{what} is not finite at step {step + 1}: lower `lr`, add `clip_grad=1` or `warmup_epochs`, or use "
        "`amp=bf16` instead of fp16"
    )
