"""The end of a pass: save, evaluate on all ranks, then rank 0 writes the row and the checkpoint that has it.

A run that ends in between, for an image that is broken or a kill, goes on with the evaluation. The last checkpoint is
written after all else: after a kill before it, the row is written again and replaces itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

from torch import nn

from trainer.config import TrainConfig
from trainer.evaluation import Evaluation, evaluate
from trainer.run_outputs import Outputs
from trainer.run_state import RunState
from trainer.training_data import TrainingData


def end_pass(
    config: TrainConfig,
    state: RunState,
    data: TrainingData,
    outputs: Outputs,
    note: Callable[[str], None],
    *,
    pass_index: int,
    lr: float,
    seconds: float,
) -> None:
    """Keep what the pass has learnt, then `report_pass`. All ranks call it."""
    state.end_pass()
    epochs = data.source.schedule.positions(pass_index)
    state.owed = {"pass_index": pass_index, "begun": epochs.start, "lr": lr, "seconds": seconds}
    if _is_evaluated(config, data, pass_index):
        outputs.save(state.checkpoint(config, epochs=epochs.stop))
    report_pass(config, state, data, outputs, note)


def report_pass(
    config: TrainConfig,
    state: RunState,
    data: TrainingData,
    outputs: Outputs,
    note: Callable[[str], None],
) -> None:
    """Evaluate weights and averaged weights; write the row that `state.owed` tells of, and the checkpoint.

    All ranks call it. Raises as `evaluate`.
    """
    assert state.owed is not None
    owed, state.owed = state.owed, None
    loss, pass_index = state.last_loss, int(owed["pass_index"])
    epoch = data.source.schedule.positions(pass_index).stop
    is_last = epoch == data.source.schedule.epochs
    evaluation = averaged = None
    if _is_evaluated(config, data, pass_index):
        try:
            evaluation = _evaluate(state.model, data, config, state, outputs)
            if state.ema is not None:
                averaged = _evaluate(state.ema.module, data, config, state, outputs)
        except (Exception, SystemExit):
            if outputs.folder is not None:
                note(f"epoch {epoch} is saved, but not evaluated: `resume` makes up for it")
            raise
    state.top1, state.top5 = (
        (None, None) if evaluation is None else (evaluation.top1, evaluation.top5)
    )
    is_best, state.best = _best(evaluation, state.best)
    is_best_ema, state.best_ema = _best(averaged, state.best_ema)
    checkpoint = state.checkpoint(config, epochs=epoch, is_whole_pass=True)
    number = data.phase(pass_index)
    labels = data.phases[number].config.labels
    row: dict[str, Any] = {
        "epoch": epoch,
        **({"phase": number + 1, "labels": labels} if config.phases else {}),
        "crops_seen": epoch * len(data.source.table),
        "step": state.step,
        "lr": owed["lr"],
        "train_loss": loss,
        **_columns("eval", evaluation),
        **({} if state.ema is None else _columns("ema", averaged)),
        "seconds": round(owed["seconds"], 3),
    }
    where = f", phase {number + 1} ({labels})" if config.phases else ""
    words = f"epoch {epoch} of {data.source.schedule.epochs}{where}: loss {loss:.4f}"
    if evaluation is not None:
        words += f", top-1 {evaluation.top1:.2f} %, top-5 {evaluation.top5:.2f} %"
    if averaged is not None:
        words += f", averaged weights {averaged.top1:.2f} %"
    note(words)
    if outputs.folder is not None:
        outputs.folder.add_summary(row)
        outputs.folder.log(words)
        if is_best and evaluation is not None:
            counts = (evaluation.images, evaluation.correct, evaluation.correct5)
            outputs.folder.save_classes(config.class_names, *counts)
    for logger in outputs.loggers:
        logger.add(row)
    if outputs.register is not None:
        figures = {"train_loss": loss, "top1": row["eval_top1"], "top5": row["eval_top5"]}
        outputs.register.add(epoch, figures | {"ema/top1": row.get("ema_top1")})
    if outputs.folder is not None:
        # without a validation folder the last weights are the ones to keep
        keep = data.val is None and is_last
        outputs.folder.save(
            checkpoint,
            best=is_best or keep,
            best_ema=state.ema is not None and (is_best_ema or keep),
        )


def _is_evaluated(config: TrainConfig, data: TrainingData, pass_index: int) -> bool:
    is_last = pass_index + 1 == data.source.schedule.num_passes
    return data.val is not None and (is_last or (pass_index + 1) % config.eval_every == 0)


def _evaluate(
    model: nn.Module, data: TrainingData, config: TrainConfig, state: RunState, outputs: Outputs
) -> Evaluation:
    """Every rank looks at its share of the images; all get the sum."""
    assert data.val is not None
    ranks = state.ranks
    ranks.same_buffers(model)
    device = next(model.parameters()).device
    val, config = data.val, dataclasses.replace(config, amp=state.amp)
    found = ranks.from_each(
        lambda: evaluate(
            model,
            val,
            config,
            device=device,
            rank=ranks.rank,
            world_size=ranks.world_size,
            report=outputs.evaluated,
        )
    )
    return reduce(add, found)


def _best(evaluation: Evaluation | None, before: float | None) -> tuple[bool, float | None]:
    is_best = evaluation is not None and (before is None or evaluation.top1 > before)
    return is_best, evaluation.top1 if evaluation is not None and is_best else before


def _columns(prefix: str, evaluation: Evaluation | None) -> dict[str, float | None]:
    return {
        f"{prefix}_loss": None if evaluation is None else evaluation.loss,
        f"{prefix}_top1": None if evaluation is None else evaluation.top1,
        f"{prefix}_top5": None if evaluation is None else evaluation.top5,
    }
