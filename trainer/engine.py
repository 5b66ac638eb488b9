"""The training loop, top to bottom in one function; what varies is made before it and passed in.

    pass      labels of m crops of every image are laid out, every image is decoded once
    step      B crops: normalise, mix, forward, soft cross-entropy, backward, optimiser
    pass end  evaluate, one row in summary.csv, checkpoint

Everything random is keyed by (seed, step), so a run that was stopped at any step goes on bit-equal (CPU).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.errors import LabelStoreError
from trainer.checkpoint import Checkpoint, RunFolder
from trainer.config import TrainConfig
from trainer.evaluation import Evaluation, evaluate
from trainer.loader import CropBatch, CropLoader
from trainer.losses import SparseSoftCrossEntropy
from trainer.mixing import mix, mixing_rng
from trainer.models import Normalise, autocast, choose_device, create_model
from trainer.schedule import LearningRate, create_optimizer
from trainer.stopping import StopRequest
from trainer.training_data import TrainingData, open_training_data

Progress = Callable[[int, int], None]
STEPS_BETWEEN_CHECKS = 50
"""How often the loss is looked at on a GPU: every look waits for the device."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a finished run reached."""

    config: TrainConfig
    steps: int
    """Optimiser steps of the whole run."""
    crops_seen: int
    train_loss: float
    """Mean over the last pass."""
    top1: float | None
    """Percent on the validation folder after the last pass; None without one."""
    top5: float | None
    best_top1: float | None
    """Largest top-1 of any evaluation."""
    seconds: float
    """Of this call."""
    model: nn.Module = field(repr=False)


def run(
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> Run:
    """Train one student as `config` says and leave a run folder (`config.output`).

    `progress` is called with steps taken and steps in all, `note` with a line per pass. UsageError and
    RejectedInput as the config's fields and the data call for; IncompleteError for an unfinished store
    without `allow_incomplete`.
    """
    started = time.perf_counter()
    device = choose_device(config.device)
    with open_training_data(config, note) as data:
        config = data.config
        model = create_model(config).to(device)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        optimizer = create_optimizer(config, model)
        scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        folder = None if config.output is None else RunFolder(config.output)
        state = _State()
        if folder is not None and (checkpoint := folder.start(config)) is not None:
            state.load(checkpoint, model, optimizer, scaler)
            note(f"resumed at step {state.step}")
        loader = CropLoader(
            data.source,
            data.images,
            batch_size=config.batch_size,
            input_size=config.input_size,
            interpolation=config.interpolation,
            seed=config.seed,
            workers=config.workers,
            pin_memory=device.type == "cuda",
        )
        steps = loader.deal.num_steps
        rate = LearningRate(config, optimizer, loader.steps(0))
        criterion = SparseSoftCrossEntropy(config.temperature)
        normalise = Normalise(config.mean, config.std).to(device)
        forward = torch.compile(model) if config.compile_model else model

        first_pass, first_step = loader.deal.locate(state.step)
        # a signal waits for the end of its step, so that weights and step number belong together
        with StopRequest() as stop:
            for pass_index in range(first_pass, data.source.schedule.num_passes):
                pass_started = time.perf_counter()
                model.train()
                with loader.batches(pass_index, first_step) as batches:
                    for batch in batches:
                        torch.manual_seed(hash((config.seed, state.step)) & 0x7FFF_FFFF)  # dropout
                        lr = rate.set(state.step)
                        optimizer.zero_grad(set_to_none=True)
                        for part in _micro_batches(batch, config.accumulation_steps):
                            crops = part.to(device)
                            pixels, labels = mix(
                                config,
                                normalise(crops.pixels),
                                (crops.class_ids, crops.probs, crops.rest),
                                mixing_rng(config.seed, state.step, part.step),
                            )
                            with autocast(device, config.amp):
                                logits = forward(pixels)
                            loss = criterion(logits, *labels) * (len(part) / len(batch))
                            scaler.scale(loss).backward()
                            state.add_loss(loss.detach() * len(batch))
                        if config.clip_grad is not None:
                            scaler.unscale_(optimizer)
                            nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
                        scaler.step(optimizer)
                        scaler.update()
                        state.end_step(len(batch), check=_is_checked(device, state.step))
                        if progress is not None:
                            progress(state.step, steps)
                        if stop.requested is not None:
                            break
                first_step = 0
                if state.step == loader.deal.first_step(pass_index) + loader.steps(pass_index):
                    _end_pass(
                        config, state, model, optimizer, scaler, data, folder, note,
                        pass_index=pass_index, lr=lr, seconds=time.perf_counter() - pass_started,
                    )  # fmt: skip
                if stop.requested is not None:
                    break
            if stop.requested is not None and folder is not None:
                folder.save(
                    state.checkpoint(
                        config, model, optimizer, scaler, epochs=pass_index * config.crops_per_image
                    )
                )
                note(f"stopped at step {state.step} of {steps}: --resume goes on from here")
        return Run(
            config=config,
            steps=steps,
            crops_seen=data.source.schedule.epochs * len(data.source.table),
            train_loss=state.last_loss,
            top1=None if state.evaluation is None else state.evaluation.top1,
            top5=None if state.evaluation is None else state.evaluation.top5,
            best_top1=state.best,
            seconds=time.perf_counter() - started,
            model=model,
        )


@dataclass(kw_only=True)
class _State:
    """What a run carries from step to step, beside weights and optimiser."""

    step: int = 0
    loss_sum: float = 0.0
    crops: int = 0
    best: float | None = None
    last_loss: float = math.nan
    evaluation: Evaluation | None = None
    _waiting: Tensor | None = None

    def add_loss(self, loss: Tensor) -> None:
        """Add one micro-batch's loss, summed over its crops, without waiting for the device."""
        self._waiting = loss if self._waiting is None else self._waiting + loss

    def end_step(self, crops: int, *, check: bool) -> None:
        """Count a step; with `check`, LabelStoreError where the loss is not finite."""
        self.step += 1
        self.crops += crops
        if check:
            self.settle()

    def settle(self) -> None:
        """Bring the waiting losses to the CPU."""
        if self._waiting is None:
            return
        loss = float(self._waiting)
        self._waiting = None
        if not math.isfinite(loss):
            raise LabelStoreError(
                f"the training loss is {loss} at step {self.step}: lower --lr, add --clip-grad 1 or --warmup-epochs, "
                "or use --amp bf16 in the place of fp16"
            )
        self.loss_sum += loss

    def end_pass(self) -> float:
        """Mean loss of the pass."""
        self.settle()
        self.last_loss = self.loss_sum / max(self.crops, 1)
        self.loss_sum, self.crops = 0.0, 0
        return self.last_loss

    def checkpoint(
        self,
        config: TrainConfig,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        *,
        epochs: int,
    ) -> Checkpoint:
        """Everything that continues the run from here."""
        self.settle()
        return Checkpoint(
            step=self.step,
            epoch=epochs,
            arch=config.model,
            state_dict=model.state_dict(),
            optimizer=optimizer.state_dict(),
            amp_scaler=scaler.state_dict() if scaler.is_enabled() else None,
            metric=self.best,
            config=config.to_mapping(),
            counters={"loss_sum": self.loss_sum, "crops": self.crops, "last_loss": self.last_loss},
        )

    def load(
        self,
        checkpoint: Checkpoint,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        """Go on from a checkpoint."""
        model.load_state_dict(checkpoint.state_dict)
        optimizer.load_state_dict(dict(checkpoint.optimizer))
        if checkpoint.amp_scaler is not None:
            scaler.load_state_dict(dict(checkpoint.amp_scaler))
        self.step, self.best = checkpoint.step, checkpoint.metric
        self.loss_sum = checkpoint.counters.get("loss_sum", 0.0)
        self.crops = int(checkpoint.counters.get("crops", 0))
        self.last_loss = checkpoint.counters.get("last_loss", math.nan)


def _end_pass(
    config: TrainConfig,
    state: _State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    data: TrainingData,
    folder: RunFolder | None,
    note: Callable[[str], None],
    *,
    pass_index: int,
    lr: float,
    seconds: float,
) -> None:
    """Evaluate, write the pass's row and the checkpoint."""
    loss = state.end_pass()
    positions = data.source.schedule.positions(pass_index)
    is_last = positions.stop == data.source.schedule.epochs
    row: dict[str, Any] = {
        "epoch": positions.stop,
        "crops_seen": positions.stop * len(data.source.table),
        "lr": lr,
        "train_loss": loss,
        "eval_loss": None,
        "eval_top1": None,
        "eval_top5": None,
        "seconds": round(seconds, 3),
    }
    state.evaluation = None
    if data.val is not None and (is_last or (pass_index + 1) % config.eval_every == 0):
        found = evaluate(model, data.val, config, device=next(model.parameters()).device)
        row |= {"eval_loss": found.loss, "eval_top1": found.top1, "eval_top5": found.top5}
        state.evaluation = found
    top1 = None if state.evaluation is None else state.evaluation.top1
    is_best = top1 is not None and (state.best is None or top1 > state.best)
    state.best = top1 if is_best else state.best
    words = f"epoch {positions.stop} of {data.source.schedule.epochs}: loss {loss:.4f}"
    if state.evaluation is not None:
        words += f", top-1 {state.evaluation.top1:.2f} %, top-5 {state.evaluation.top5:.2f} %"
    note(words)
    if folder is not None:
        folder.add_summary(row)
        folder.log(words)
        # without a validation folder the last weights are the ones to keep
        best = is_best or (data.val is None and is_last)
        checkpoint = state.checkpoint(config, model, optimizer, scaler, epochs=positions.stop)
        folder.save(checkpoint, best=best)


def _micro_batches(batch: CropBatch, count: int) -> Iterator[CropBatch]:
    """A step's crops in up to `count` parts of whole images; their `step` numbers the part."""
    images = len(batch.images)
    count = min(count, images)  # the last step of a pass may be smaller
    bounds = [images * i // count for i in range(count + 1)]
    for part, (first, last) in enumerate(itertools.pairwise(bounds)):
        yield batch.part(first, last, number=part)


def _is_checked(device: torch.device, step: int) -> bool:
    return device.type == "cpu" or (step + 1) % STEPS_BETWEEN_CHECKS == 0
