"""The training loop, top to bottom in one function; what varies is made before it and passed in.

    phase     what is learnt from, and the loss: a run without phases is one
    pass      labels of m crops of every image are laid out, every image is decoded once
    step      B crops over all ranks: normalise, mix, forward, loss, backward, optimiser, moving average
    pass end  checkpoint, evaluate, one row in summary.csv, checkpoint

Everything random is keyed by (seed, step), so a run that was stopped at any step goes on bit-equal (CPU).
Under torchrun every rank runs this function on its share of each step's images.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from labelstore.arrays.durable import check_new_place
from labelstore.cropping.device_decoding import device_decoding, sample_of
from labelstore.devices import backend_of, choose_device
from labelstore.scratch.folders import scratch_parent
from trainer.augmentation import augmentation_of
from trainer.between_steps import BetweenSteps
from trainer.checkpoint import Checkpoint, RunFolder
from trainer.config import TrainConfig
from trainer.evaluation import check_evaluable
from trainer.loader import CropLoader, LoaderOptions
from trainer.mixing import mixing_rng
from trainer.models import autocast, chosen_amp, create_model
from trainer.pass_end import end_pass, report_pass
from trainer.phase_training import PhaseTraining
from trainer.ranks import Ranks, join_ranks
from trainer.run_outputs import Outputs, open_outputs
from trainer.run_state import RunState
from trainer.schedule import LearningRate
from trainer.shared_step import (
    blank_crops,
    check_single_crops,
    exchanged,
    micro_batches,
    own_randomness,
    parallel_model,
    seed_step,
    still_averages,
    still_statistics,
    with_synced_batchnorm,
)
from trainer.stopping import StopRequest
from trainer.training_data import training_data_of_rank

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Results of a finished run."""

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
    best_ema_top1: float | None
    """The same of the averaged weights; None without `ema_decay`."""
    seconds: float
    """Seconds of this call."""
    model: nn.Module = field(repr=False)

    def figures(self) -> dict[str, float | None]:
        """The results by name."""
        names = (
            "steps",
            "crops_seen",
            "train_loss",
            "top1",
            "top5",
            "best_top1",
            "best_ema_top1",
            "seconds",
        )
        return {name: getattr(self, name) for name in names}


def run(
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    evaluated: Progress | None = None,
    note: Callable[[str], None] = lambda message: None,
    begin: Callable[
        [TrainConfig, Ranks, Callable[[str], None]],
        tuple[Outputs, Checkpoint | None, TrainConfig],
    ] = open_outputs,
) -> Run:
    """Train one student as `config` says and leave a run folder (`config.output`).

    `progress` is called with steps taken and steps in all, `evaluated` with images and images in all of each
    evaluation (of rank 0's share), `note` with a line per pass; all on rank 0 only. `begin` opens the outputs, once
    everything else is there.
    UsageError and RejectedInput as the config's fields and the data call for; IncompleteError for an unfinished
    store without `allow_incomplete`; LabelStoreError for a loss that is not finite, or another rank that ended.
    """
    started = time.perf_counter()
    early: list[str] = []

    def tell(line: str) -> None:
        """Before there is a log.txt, which gets these lines as soon as it is there."""
        early.append(line)
        note(line)

    with (
        join_ranks() as ranks,
        training_data_of_rank(config, ranks, tell) as data,
        ExitStack() as opened,
    ):
        config = data.config
        device = choose_device(config.device, ranks.local_rank if ranks.world_size > 1 else None)
        if not ranks.is_first:
            progress, evaluated, note = None, None, lambda message: None
        if (val := data.val) is not None:
            ranks.on_first(lambda: check_evaluable(val, config))
        model = create_model(config, tell).to(device)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if config.sync_batchnorm:
            model = with_synced_batchnorm(model, device)
        if config.amp == "auto":
            amp = ranks.on_first(lambda: chosen_amp(device, "auto"))
            config = dataclasses.replace(config, provenance={**config.provenance, "amp": amp})
        loader = CropLoader(
            data.source,
            data.images,
            batch_size=config.batch_size,
            input_size=config.input_size,
            interpolation=config.interpolation,
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            augment=augmentation_of(config),
            options=LoaderOptions(
                workers=config.workers,
                pin_memory=backend_of(device).copies_ahead,
                decoding=None
                if config.decode_device == "cpu"
                else device_decoding(
                    device,
                    sample_of(data.images, data.source.table.keys),
                    size=config.input_size,
                    interpolation=config.interpolation,
                    note=tell,
                ),
                kind=config.loader,
                scratch=config.scratch,
            ),
        )
        opened.callback(loader.close)
        check_single_crops(model, loader.deal, config)
        outputs, checkpoint, config = begin(config, ranks, note)
        opened.callback(outputs.close)
        outputs = dataclasses.replace(outputs, evaluated=evaluated)
        if checkpoint is None:
            for line in early:
                outputs.log(line)
        # a run goes on with what auto was when it began, wherever it is resumed
        amp = config.provenance["amp"] if config.amp == "auto" else config.amp
        if config.amp == "auto" and amp != "none":
            outputs.say(f"amp auto is {amp}", note)
        exact = dataclasses.replace(config, amp=amp)
        state = RunState.of(exact, model, ranks)
        if checkpoint is not None:
            state.load(checkpoint)
            outputs.say(f"resumed at step {state.step}", note)
        schedule, steps = data.source.schedule, loader.deal.num_steps
        rate = LearningRate(
            config,
            state.optimizer,
            [(m, loader.steps(p)) for p, m in enumerate(schedule.crops_per_pass)],
        )
        phases = [
            PhaseTraining.of(phase, state, device, amp=amp, note=note) for phase in data.phases
        ]
        parallel = parallel_model(model, ranks, device)
        forward = torch.compile(parallel) if config.compile_model else parallel

        first_pass, first_step = loader.deal.locate(state.step)
        agreed = 0

        def save() -> None:
            inside, _ = loader.deal.locate(state.step)
            outputs.save(state.checkpoint(config, epochs=schedule.positions(inside).start))

        # a signal waits for the end of its step, so that weights and step number belong together
        with own_randomness(device), StopRequest() as stop:
            between = BetweenSteps(
                ranks, stop, step=lambda: state.step, save=None if config.output is None else save,
                minutes=config.checkpoint_minutes, note=note,
            )  # fmt: skip
            if state.owed is not None:
                report_pass(config, state, data, outputs, note)
            for pass_index in range(first_pass, schedule.num_passes):
                pass_started = time.perf_counter()
                epoch = schedule.positions(pass_index).start
                phase = phases[data.phase(pass_index)]
                parallel.train()
                with loader.batches(pass_index, first_step) as batches:
                    for batch in between.batches(batches):
                        seed_step(config.seed, state.step, ranks.rank)
                        lr = rate.set(state.step)
                        state.optimizer.zero_grad(set_to_none=True)
                        parts = list(micro_batches(batch, config.accumulation_steps, loader.deal))
                        for part in parts:
                            # a rank without images in this step takes part with black ones, which weigh nothing
                            idle = not len(part) and not config.sync_batchnorm
                            pixels, labels, truth = phase.view(
                                blank_crops(part) if idle else part,
                                mixing_rng(config.seed, state.step, ranks.rank, part.step),
                                epoch=epoch,
                            )
                            with (
                                exchanged(parallel, is_last=part is parts[-1]),
                                still_statistics(parallel, when=idle),
                            ):
                                with autocast(device, amp):
                                    logits = forward(pixels)
                                loss = phase.criterion(logits, labels, truth)
                                share = len(part) / batch.crops_of_step * ranks.world_size
                                with still_averages(model, when=config.grad_checkpointing):
                                    state.scaler.scale(loss * share).backward()
                            if len(part):
                                state.add_loss(loss.detach() * len(part))
                        norm = None
                        if config.clip_grad is not None:
                            state.scaler.unscale_(state.optimizer)
                            norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
                        # a part without crops has no mean: the other ranks look at theirs
                        if (is_checked := state.is_checked()) and len(part):
                            state.check_finite(labels[1], logits, loss, norm)
                        state.scaler.step(state.optimizer)
                        state.scaler.update()
                        if state.ema is not None:
                            state.ema.update(model)
                        state.end_step(len(batch), settle=is_checked)
                        if progress is not None:
                            progress(state.step, steps)
                first_step = 0
                if not (agreed := between.stopped):
                    end_pass(
                        config, state, data, outputs, note,
                        pass_index=pass_index, lr=lr, seconds=time.perf_counter() - pass_started,
                    )  # fmt: skip
                    agreed = ranks.largest(stop.requested or 0)
                if agreed:
                    break
            if agreed:
                # of all ranks, whichever got the signal
                stop.requested = agreed
                if state.step < steps:
                    kept = "nothing is kept without a run folder"
                    if config.output is not None:
                        kept = "`resume` goes on from here"
                    outputs.say(f"stopped at step {state.step} of {steps}: {kept}", note)
        finished = Run(
            config=config,
            steps=steps,
            crops_seen=schedule.epochs * len(data.source.table),
            train_loss=state.last_loss,
            top1=state.top1,
            top5=state.top5,
            best_top1=state.best,
            best_ema_top1=state.best_ema,
            seconds=time.perf_counter() - started,
            model=model,
        )
        if not agreed:
            figures = finished.figures().items()
            outputs.log(
                ", ".join(f"{name} {value:.10g}" for name, value in figures if value is not None)
            )
        return finished


class _Rehearsed(BaseException):
    """Everything can begin; no error, so that nothing on the way takes it for one."""


def rehearse(config: TrainConfig, *, note: Callable[[str], None] = lambda message: None) -> None:
    """Do everything that `run` does before it writes: raises what it raises, and leaves nothing behind."""

    def look(config: TrainConfig, ranks: Ranks, note: Callable[[str], None]) -> NoReturn:
        if config.output is not None:
            RunFolder(config.output).check(config)
        raise _Rehearsed

    with tempfile.TemporaryDirectory(prefix="labelstore-dry-run-") as folder:
        if config.scratch is not None:
            check_new_place(scratch_parent(config.scratch), "`scratch`")
            config = dataclasses.replace(config, scratch=Path(folder))
        with suppress(_Rehearsed):
            run(config, note=note, begin=look)
