"""What makes the settings of a run impossible: one value that cannot be, or several that do not go together.

Every check is a UsageError in one line: what was given, what is allowed. What a setting means is said at its field.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from labelstore.errors import MAX_TEMPERATURE, MIN_TEMPERATURE, UsageError
from trainer.phases import WITHOUT_CLASSES, check_phases

if TYPE_CHECKING:
    from trainer.config import TrainConfig

_FRACTIONS = (
    "flip_prob",
    "label_smoothing",
    "mixing_prob",
    "momentum",
    "ground_truth_weight",
    "erasing_prob",
    "color_jitter_prob",
    "grayscale_prob",
    "blur_prob",
)
_POSITIVE = (
    "input_size",
    "crops_per_image",
    "batch_size",
    "epochs",
    "lr",
    "decay_epochs",
    "workers",
    "eval_every",
    "eval_batch_size",
    "accumulation_steps",
    "mixup_alpha",
    "cutmix_alpha",
    "cosine_eta",
)
_NOT_NEGATIVE = (
    "keep_draws",
    "checkpoint_minutes",
    "weight_decay",
    "min_lr",
    "warmup_lr",
    "warmup_epochs",
    "seed",
    "decay_rate",
    "single_crop_first",
    "single_crop_last",
    "rand_augment",
    "rand_augment_std",
    "rand_augment_ops",
    "lighting",
    "mixing_off_epochs",
)

_AT_MOST = {
    "epochs": 1_000_000,
    "crops_per_image": 100_000,
    "batch_size": 1 << 24,
    "eval_batch_size": 1 << 24,
    "accumulation_steps": 1 << 20,
    "input_size": 1 << 14,
    "workers": 1024,
    "seed": (1 << 63) - 1,
}


def check_config(config: TrainConfig) -> None:
    """UsageError for a value that cannot be meant, then for values that contradict each other."""
    _check_each(config)
    _check_together(config)
    if config.phases:
        check_phases(config)
    else:
        _check_supervision(config)


def split_names(text: str | None) -> tuple[str, ...]:
    """Names joined by commas.

    >>> split_names("a, b"), split_names(None)
    (('a', 'b'), ())
    """
    return () if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def learns_from_store(config: TrainConfig) -> bool:
    """Whether stored labels reach the student, and not only the crops that they are of."""
    return config.store is not None and config.labels not in ("ground-truth", "teacher")


def _check_each(config: TrainConfig) -> None:
    for name in _POSITIVE:
        _require(config, name, getattr(config, name) > 0, "it must be above 0")
    for name, most in _AT_MOST.items():
        _require(config, name, getattr(config, name) <= most, f"it must be at most {most:,}")
    if config.temperature is not None:
        meant = MIN_TEMPERATURE <= config.temperature <= MAX_TEMPERATURE
        _require(
            config,
            "temperature",
            meant,
            f"give a number within {MIN_TEMPERATURE} and {MAX_TEMPERATURE}, or leave it out",
        )
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        finite = all(math.isfinite(n) for n in numbers if isinstance(n, float))
        _require(config, field.name, finite, "give a number that is finite")
    for name in _NOT_NEGATIVE:
        _require(config, name, getattr(config, name) >= 0, "it must not be negative")
    for name in _FRACTIONS:
        _require(config, name, 0 <= getattr(config, name) <= 1, "it must be within 0 and 1")
    _require(config, "crop_pct", 0 < config.crop_pct <= 2, "it must be above 0, and at most 2")
    _require(
        config,
        "num_classes",
        config.num_classes is None or config.num_classes > 1,
        "give 2 or more",
    )
    for name in ("clip_grad", "layer_decay"):
        value = getattr(config, name)
        _require(config, name, value is None or value > 0, "it must be above 0, or left out")
    _require(config, "std", min(config.std) > 0, "each must be above 0")
    _require(
        config,
        "ema_decay",
        config.ema_decay is None or 0 < config.ema_decay < 1,
        "give above 0, below 1",
    )
    _require(config, "rand_augment", config.rand_augment <= 10, "it must be within 0 and 10")
    *factors, hue = config.color_jitter
    _require(
        config,
        "color_jitter",
        all(0 <= factor <= 1 for factor in factors) and 0 <= hue <= 0.5,
        "give three values within 0 and 1, and a hue within 0 and 0.5",
    )
    _require(config, "betas", all(0 <= beta < 1 for beta in config.betas), "each must be in [0, 1)")
    low, high = config.scale
    _require(config, "scale", 0 < low <= high <= 1, "give (low, high) with 0 < low <= high <= 1")
    low, high = config.blur_sigma
    _require(config, "blur_sigma", 0 < low <= high, "give (low, high) with 0 < low <= high")
    low, high = config.ratio
    _require(config, "ratio", 0 < low <= high, "give (low, high) with 0 < low <= high")


def _check_together(config: TrainConfig) -> None:
    m = config.crops_per_image
    _require(
        config,
        "batch_size",
        config.batch_size % m == 0,
        f"it must be a multiple of crops_per_image={m}, e.g. {-(-config.batch_size // m) * m}",
    )
    _require(
        config,
        "epochs",
        config.epochs >= config.single_crop_first + config.single_crop_last,
        f"it must be at least single_crop_first + single_crop_last = "
        f"{config.single_crop_first + config.single_crop_last}",
    )
    _require(
        config,
        "warmup_epochs",
        config.warmup_epochs < config.epochs,
        f"give less than epochs={config.epochs}",
    )
    _require(
        config,
        "milestones",
        list(config.milestones) == sorted(config.milestones),
        "give them in order",
    )
    if config.warmup_serrated and not config.serrated:
        raise UsageError(
            "warmup_serrated without serrated: only the warm-up would have stairs; set serrated, or leave it out"
        )
    if config.loader == "process" and config.decode_device == "device":
        raise UsageError(
            "loader='process' with decode_device='device': that process has no device; leave one of them out"
        )
    if config.scheduler == "multistep" and not config.milestones:
        raise UsageError(
            "scheduler='multistep' without milestones: give the epochs where it decays"
        )
    if config.labels == "ground-truth" and config.temperature not in (None, 1):
        raise UsageError(
            f"temperature={config.temperature} with ground-truth labels: they have none; leave it out"
        )
    if config.cosine_eta != 1 and config.scheduler != "cosine":
        raise UsageError(
            f"cosine_eta={config.cosine_eta:g} with scheduler={config.scheduler!r}: it is the length of a cosine; "
            "leave it at 1"
        )
    if config.mixing == "selfmix" and m == 1:
        raise UsageError(
            "mixing='selfmix' with crops_per_image=1: there is nothing to mix with; give 2 or more"
        )
    if "num_classes" in config.model_kwargs:
        raise UsageError(
            f"model_kwargs has num_classes={config.model_kwargs['num_classes']!r}: it follows from the labels; "
            "leave it out"
        )
    if config.pretrained and config.initial_checkpoint is not None:
        raise UsageError("pretrained and initial_checkpoint together: give one of them")
    if config.may_differ and not config.resume:
        raise UsageError(
            f"may_differ={','.join(config.may_differ)} without resume: a new run has nothing to differ from; leave "
            "it out"
        )
    if config.loggers and config.output is None:
        raise UsageError(
            f"loggers={','.join(config.loggers)} without a run folder: give output, where its files go"
        )
    if config.class_names and config.num_classes not in (None, len(config.class_names)):
        raise UsageError(
            f"num_classes={config.num_classes} with {len(config.class_names)} class_names: leave one out"
        )


def _check_supervision(config: TrainConfig) -> None:
    kind, names = config.labels, split_names(config.label_set)
    if kind not in ("ground-truth", "teacher") and config.store is None:
        raise UsageError(f"labels={kind!r} without a store: give store, or labels='ground-truth'")
    if kind == "ferkd" and config.mask is None:
        raise UsageError(
            "labels='ferkd' without a mask: give one that `labelstore info` lists, or labels='fkd'"
        )
    if config.mask is not None and (
        kind not in ("ferkd", "ensemble", "teacher") or not config.store
    ):
        raise UsageError(
            f"mask={config.mask!r} with labels={kind!r}: masks belong to labels='ferkd' or 'ensemble'"
        )
    if kind == "ensemble" and not names:
        raise UsageError(
            "labels='ensemble' without label_set: give the names of its label sets, joined by commas"
        )
    if kind != "ensemble" and len(names) > 1:
        raise UsageError(
            f"label_set={config.label_set!r} with labels={kind!r}: several label sets are labels='ensemble'"
        )
    for what, given in (
        ("mask", split_names(config.mask)),
        ("ensemble_weights", config.ensemble_weights),
    ):
        if kind == "ensemble" and given and len(given) != len(names):
            raise UsageError(
                f"{len(given)} values of {what} for {len(names)} label sets: give one for each, in the same order"
            )
    if config.ensemble_weights and kind != "ensemble":
        raise UsageError(f"ensemble_weights with labels={kind!r}: they belong to labels='ensemble'")
    _require(
        config,
        "ensemble_weights",
        all(math.isfinite(weight) and weight > 0 for weight in config.ensemble_weights),
        "each must be above 0",
    )
    if (config.teacher is not None) != (kind == "teacher"):
        raise UsageError(
            f"teacher={config.teacher!r} with labels={kind!r}: an online teacher and labels='teacher' go together"
        )
    if config.checkpoint_weights and not (config.teacher or config.initial_checkpoint):
        raise UsageError(
            f"checkpoint_weights={config.checkpoint_weights!r} without teacher and initial_checkpoint: it chooses "
            "between the weights of these; leave it out"
        )
    if config.teacher_model is not None and config.teacher is None:
        raise UsageError("teacher_model without teacher: it is the network of a checkpoint")
    _check_ignored(config)
    low, high = config.probability_range
    _require(
        config,
        "probability_range",
        0 <= low <= high <= 1,
        "give (low, high) with 0 <= low <= high <= 1",
    )
    picks = config.order != "random" or config.probability_range != (0, 1)
    if picks and config.store is None:
        raise UsageError(
            f"order={config.order!r}, probability_range={low:g},{high:g} with labels={kind!r} and no store: they "
            "are of stored crops"
        )
    if names and config.store is None:
        raise UsageError(
            f"label_set={config.label_set!r} with labels={kind!r} and no store: give the store that it is in"
        )
    if config.projection_head and kind not in WITHOUT_CLASSES:
        raise UsageError(
            f"projection_head with labels={kind!r}: its outputs are no logits of classes; it belongs to labels='ssl' "
            "and 'embedding'"
        )
    _check_embedding(config, picks=picks)
    if config.discriminator and kind in ("ground-truth", *WITHOUT_CLASSES):
        raise UsageError(
            f"discriminator with labels={kind!r}: it tells a student's probabilities from a teacher's; leave it out"
        )
    if kind in WITHOUT_CLASSES and config.ground_truth_weight:
        raise UsageError(
            f"ground_truth_weight={config.ground_truth_weight} with labels={kind!r}: outputs that are learnt so are no "
            "classes; leave it at 0"
        )


def _check_embedding(config: TrainConfig, *, picks: bool) -> None:
    """UsageError for settings of a softmax, where labels have none, and for those of an embedding elsewhere."""
    if config.labels != "embedding":
        if config.embedding_loss != "cosine":
            raise UsageError(
                f"embedding_loss={config.embedding_loss!r} with labels={config.labels!r}: it belongs to "
                "labels='embedding'; leave it out"
            )
        return
    reasons = {
        "temperature": config.temperature is not None,
        "soft_loss": config.soft_loss != "cross-entropy",
        "order, probability_range": picks,
    }
    for name, is_given in reasons.items():
        if is_given:
            raise UsageError(
                f"{name} with labels='embedding': of an embedding no softmax is taken; leave it out"
            )


def _check_ignored(config: TrainConfig) -> None:
    """UsageError for a setting of labels that this run does not make; those of crops are for who opens the store."""
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    reasons: dict[str, str] = {}
    if config.labels != "ground-truth" and not config.ground_truth_weight:
        reasons["label_smoothing"] = "without ground_truth_weight no ground truth is learnt from"
    for name, reason in reasons.items():
        value = getattr(config, name)
        if value != usual[name]:
            raise UsageError(
                f"{name}={value!r} with labels={config.labels!r}: {reason}; leave it at {usual[name]}"
            )


def _require(config: TrainConfig, name: str, holds: bool, advice: str) -> None:
    if not holds:
        raise UsageError(f"{name}={getattr(config, name)!r}: {advice}")
