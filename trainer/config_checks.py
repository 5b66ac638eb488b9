"""Settings of a run that contradict each other. What one setting may be by itself is said at its field.

Each law gives its message in one line: what was given, what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from labelstore.errors import UsageError
from trainer.phases import WITHOUT_CLASSES, check_phases

if TYPE_CHECKING:
    from trainer.config import TrainConfig


def check_config(config: TrainConfig) -> None:
    """UsageError for the first contradiction."""
    for message in _contradictions(config):
        raise UsageError(message)
    if config.phases:
        check_phases(config)
        return
    for message in _label_contradictions(config):
        raise UsageError(message)


def split_names(text: str | None) -> tuple[str, ...]:
    """Names joined by commas.

    >>> split_names("a, b"), split_names(None)
    (('a', 'b'), ())
    """
    return () if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def learns_from_store(config: TrainConfig) -> bool:
    """Whether stored labels reach the student, and not only the crops that they are of."""
    return config.store is not None and config.labels not in ("ground-truth", "teacher")


def _contradictions(c: TrainConfig) -> Iterator[str]:
    """Messages of the laws that any run has to keep and this one breaks."""
    m, singles = c.crops_per_image, c.single_crop_first + c.single_crop_last
    if c.batch_size % m:
        nearest = -(-c.batch_size // m) * m
        yield f"batch_size={c.batch_size}: it must be a multiple of crops_per_image={m}, e.g. {nearest}"
    if c.epochs < singles:
        yield f"epochs={c.epochs}: it must be at least single_crop_first + single_crop_last = {singles}"
    if c.warmup_epochs >= c.epochs:
        yield f"warmup_epochs={c.warmup_epochs}: give less than epochs={c.epochs}"
    if c.warmup_serrated and not c.serrated:
        yield "warmup_serrated without serrated: only the warm-up would have stairs; set serrated, or leave it out"
    if c.loader == "process" and c.decode_device == "device":
        yield "loader='process' with decode_device='device': that process has no device; leave one of them out"
    if c.scheduler == "multistep" and not c.milestones:
        yield "scheduler='multistep' without milestones: give the epochs where it decays"
    if c.labels == "ground-truth" and c.temperature not in (None, 1):
        yield f"temperature={c.temperature} with ground-truth labels: they have none; leave it out"
    if c.cosine_eta != 1 and c.scheduler != "cosine":
        yield (
            f"cosine_eta={c.cosine_eta:g} with scheduler={c.scheduler!r}: it is the length of a cosine; leave it at 1"
        )
    if c.mixing == "selfmix" and m == 1:
        yield "mixing='selfmix' with crops_per_image=1: there is nothing to mix with; give 2 or more"
    if "num_classes" in c.model_kwargs:
        given = c.model_kwargs["num_classes"]
        yield f"model_kwargs has num_classes={given!r}: it follows from the labels; leave it out"
    if c.pretrained and c.initial_checkpoint is not None:
        yield "pretrained and initial_checkpoint together: give one of them"
    if c.may_differ and not c.resume:
        names = ",".join(c.may_differ)
        yield f"may_differ={names} without resume: a new run has nothing to differ from; leave it out"
    if c.loggers and c.output is None:
        names = ",".join(c.loggers)
        yield f"loggers={names} without a run folder: give output, where its files go"
    if c.class_names and c.num_classes not in (None, len(c.class_names)):
        yield f"num_classes={c.num_classes} with {len(c.class_names)} class_names: leave one out"


def _label_contradictions(c: TrainConfig) -> Iterator[str]:
    """The same of a run, or a phase, with one kind of labels."""
    kind, names = c.labels, split_names(c.label_set)
    if kind not in ("ground-truth", "teacher") and c.store is None:
        yield f"labels={kind!r} without a store: give store, or labels='ground-truth'"
    if kind == "ferkd" and c.mask is None:
        yield "labels='ferkd' without a mask: give one that `labelstore info` lists, or labels='fkd'"
    if c.mask is not None and (kind not in ("ferkd", "ensemble", "teacher") or not c.store):
        yield f"mask={c.mask!r} with labels={kind!r}: masks belong to labels='ferkd' or 'ensemble'"
    if kind == "ensemble" and not names:
        yield "labels='ensemble' without label_set: give the names of its label sets, joined by commas"
    if kind != "ensemble" and len(names) > 1:
        yield f"label_set={c.label_set!r} with labels={kind!r}: several label sets are labels='ensemble'"
    for what, values in (("mask", split_names(c.mask)), ("ensemble_weights", c.ensemble_weights)):
        if kind == "ensemble" and values and len(values) != len(names):
            yield (
                f"{len(values)} values of {what} for {len(names)} label sets: give one for each, in the same order"
            )
    if c.ensemble_weights and kind != "ensemble":
        yield f"ensemble_weights with labels={kind!r}: they belong to labels='ensemble'"
    if (c.teacher is not None) != (kind == "teacher"):
        yield (
            f"teacher={c.teacher!r} with labels={kind!r}: an online teacher and labels='teacher' go together"
        )
    if c.checkpoint_weights and not (c.teacher or c.initial_checkpoint):
        yield (
            f"checkpoint_weights={c.checkpoint_weights!r} without teacher and initial_checkpoint: it chooses between "
            "the weights of these; leave it out"
        )
    if c.teacher_model is not None and c.teacher is None:
        yield "teacher_model without teacher: it is the network of a checkpoint"
    if c.label_smoothing and kind != "ground-truth" and not c.ground_truth_weight:
        yield (
            f"label_smoothing={c.label_smoothing!r} with labels={kind!r}: without ground_truth_weight no ground truth "
            "is learnt from; leave it at 0.0"
        )
    low, high = c.probability_range
    picks = c.order != "random" or (low, high) != (0, 1)
    if picks and c.store is None:
        yield (
            f"order={c.order!r}, probability_range={low:g},{high:g} with labels={kind!r} and no store: they are of "
            "stored crops"
        )
    if names and c.store is None:
        yield f"label_set={c.label_set!r} with labels={kind!r} and no store: give the store that it is in"
    if c.projection_head and kind not in WITHOUT_CLASSES:
        yield (
            f"projection_head with labels={kind!r}: its outputs are no logits of classes; it belongs to labels='ssl' "
            "and 'embedding'"
        )
    if kind == "embedding":
        softmax = {
            "temperature": c.temperature is not None,
            "soft_loss": c.soft_loss != "cross-entropy",
            "order, probability_range": picks,
        }
        for name in (name for name, is_given in softmax.items() if is_given):
            yield f"{name} with labels='embedding': of an embedding no softmax is taken; leave it out"
    elif c.embedding_loss != "cosine":
        yield (
            f"embedding_loss={c.embedding_loss!r} with labels={kind!r}: it belongs to labels='embedding'; leave it out"
        )
    if c.discriminator and kind in ("ground-truth", *WITHOUT_CLASSES):
        yield (
            f"discriminator with labels={kind!r}: it tells a student's probabilities from a teacher's; leave it out"
        )
    if kind in WITHOUT_CLASSES and c.ground_truth_weight:
        yield (
            f"ground_truth_weight={c.ground_truth_weight} with labels={kind!r}: outputs that are learnt so are no "
            "classes; leave it at 0"
        )
