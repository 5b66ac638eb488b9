"""Networks: made by name, checked against the number of classes, fed with uint8 crops, loaded from a run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from labelstore.devices import native_half
from labelstore.errors import RejectedInput, UsageError
from labelstore.teachers.named_networks import UNFIT, build, is_function
from labelstore.teachers.weights import (
    RUN_AVERAGE,
    RUN_WEIGHTS,
    Weights,
    load_weights,
    read_weights,
    run_weights,
    state_digest,
)
from trainer.config import Autocast, TrainConfig

WEIGHTS, BEST, LAST = RUN_WEIGHTS
"""Files of a run folder that hold weights, the first one preferred; its metadata keeps `DIGEST_KEY`."""
WEIGHTS_EMA = RUN_AVERAGE
"""The moving average of the weights, of a run with `ema_decay`."""
DIGEST_KEY = "weights_sha256"
OWN_FUNCTIONS = ("trainer.models.reactnet:reactnet_a",)
"""Functions that a run folder may name by itself; any other code is run only where the caller names it."""


class Normalise(nn.Module):
    """uint8 crops (B, 3, S, S) -> float32, (pixel / 255 - mean) / std per channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        deviation = torch.tensor(std, dtype=torch.float64).view(1, 3, 1, 1)
        centre = torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1)
        # one multiplication and one addition per value
        self.register_buffer("scale", (1 / (255 * deviation)).float(), persistent=False)
        self.register_buffer("shift", (-centre / deviation).float(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) on this module's device -> float32 of the same shape."""
        return torch.addcmul(self.shift, pixels.float(), self.scale)


def create_model(
    config: TrainConfig, note: Callable[[str], None] = lambda message: None
) -> nn.Module:
    """The network of a config on the CPU, its initial weights a function of the config's seed alone.

    `config.model` is a timm name, torchvision:NAME, or `package.module:function`, which is called with
    `num_classes` and `model_kwargs`. UsageError if there is no such network or it does not return
    (B, num_classes) logits; RejectedInput if `initial_checkpoint` does not fit it. `note` says which of its weights
    were taken by default.
    """
    if config.num_classes is None:
        raise UsageError(f"model={config.model!r} without num_classes: give it, or class folders")
    options = {**config.model_kwargs, "num_classes": config.num_classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build(config.model, options, pretrained=config.pretrained)
        if config.projection_head:
            add_projection_head(model, unit_length=config.labels == "ssl")
        if config.grad_checkpointing:
            _checkpoint_gradients(model, config)
        if config.initial_checkpoint is not None:
            file = read_weights(config.initial_checkpoint, config.checkpoint_weights)
            load_weights(model, file)
            if file.note is not None:
                note(file.note)
        _check_logits(model, config)
    return model


def load_run(
    path: Path | str, *, model: str | None = None, weights: Weights | None = None
) -> tuple[nn.Module, TrainConfig]:
    """The trained network of a run folder, in evaluation mode on the CPU, and the run's config.

    Takes the folder (best weights first, then the last ones; with `weights="ema"` their moving average) or one weight
    file in it. `model` names the network in the config's place. RejectedInput if it is no run folder, holds no weights
    yet, or its weights are damaged; UsageError where the run's network is a function that is none of this package's
    and `model` does not name it.
    """
    path = Path(path)
    config = read_run_config(path)
    if model is not None:
        config = dataclasses.replace(config, model=model)
    elif names_foreign_code(config):
        raise UsageError(
            f"{path} is a run of {config.model}, and a folder does not say which code to run: give `model` "
            f"{config.model} if you trust it"
        )
    file = weight_file(path, weights)
    untrained = dataclasses.replace(
        config, pretrained=False, initial_checkpoint=None, grad_checkpointing=False
    )
    network = create_model(untrained)
    # a folder's averaged weights lie in a file of their own
    load_weights(network, read_weights(file, weights if path.is_file() else None))
    _check_digest(network, file)
    return network.eval(), config


def names_foreign_code(config: TrainConfig) -> bool:
    """Whether the network is a function that is none of this package's."""
    return is_function(config.model) and config.model not in OWN_FUNCTIONS


def read_run_config(path: Path) -> TrainConfig:
    """The config of a run folder, or of the one that a weight file lies in; RejectedInput where there is none."""
    config_path = (path if path.is_dir() else path.parent) / "config.yaml"
    if not config_path.is_file():
        what = "is no run folder" if path.is_dir() else "lies in no run folder"
        raise RejectedInput(
            f"{path} {what}: there is no config.yaml; give one that `trainer.run` wrote, or a weight file in one"
        )
    return TrainConfig.from_yaml(config_path)


def weight_file(path: Path, weights: Weights | None = None) -> Path:
    """The file that `load_run` takes: one that is given itself, or a run folder's (see `run_weights`)."""
    return path if path.is_file() else run_weights(path, weights)


def _checkpoint_gradients(model: nn.Module, config: TrainConfig) -> None:
    refused = f"grad_checkpointing with model={config.model!r}: this network cannot; leave it off"
    switch = getattr(model, "set_grad_checkpointing", None)
    if not callable(switch):
        raise UsageError(refused)
    try:
        switch(True)
    except (AssertionError, NotImplementedError) as error:
        raise UsageError(refused) from error


def logits_of(model: nn.Module, config: TrainConfig) -> object:
    """The outputs of a network in evaluation mode for one black image; UsageError where it does not take its size."""
    size = config.input_size
    try:
        with torch.no_grad():
            return model.eval()(torch.zeros(1, 3, size, size))
    except (*UNFIT, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"model={config.model!r} does not take {size} x {size} pixels ({reason})"
        ) from error


def _check_logits(model: nn.Module, config: TrainConfig) -> None:
    training = model.training
    try:
        logits = logits_of(model, config)
    finally:
        model.train(training)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (1, config.num_classes):
        raise UsageError(
            f"model={config.model!r} gives {shape} for one image, labels need (1, {config.num_classes}):"
            " choose a classifier, and check num_classes"
        )


def _check_digest(model: nn.Module, weights: Path) -> None:
    if weights.suffix != ".safetensors":
        return
    try:
        with safe_open(weights, framework="pt") as file:
            recorded = (file.metadata() or {}).get(DIGEST_KEY)
    except (OSError, SafetensorError) as error:
        raise RejectedInput(f"{weights} cannot be read ({error}): use {LAST}") from error
    if recorded is not None and recorded != state_digest(model.state_dict()):
        raise RejectedInput(
            f"{weights} is damaged: its weights are not those that were saved; use {LAST}"
        )


class UnitLength(nn.Module):
    """(B, C) -> the same directions at length 1, in float32."""

    def forward(self, outputs: Tensor) -> Tensor:
        """(B, C) -> (B, C) float32; zeros stay zeros."""
        return functional.normalize(outputs.float(), dim=1)


def add_projection_head(model: nn.Module, *, unit_length: bool = True) -> None:
    """Put the head where the network's linear classifier is, with its number of outputs, weights as torch draws them.

    Without `unit_length` the outputs are the last layer's own, as an embedding of any length has them.

    UsageError for a network without timm's `get_classifier` and `reset_classifier`, or whose classifier is not one
    linear layer.
    """
    get = getattr(model, "get_classifier", None)
    classifier = get() if callable(get) else None
    if not isinstance(classifier, nn.Linear) or not callable(
        getattr(model, "reset_classifier", None)
    ):
        raise UsageError(
            f"projection_head on {type(model).__name__}: it takes the place of one linear layer that "
            "get_classifier returns and reset_classifier takes off, as timm's networks have it; choose such a network"
        )
    (name,) = [name for name, module in model.named_modules() if module is classifier]
    width, outputs = classifier.in_features, classifier.out_features
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)]
    head = nn.Sequential(*layers, *([UnitLength()] if unit_length else []))
    model.set_submodule(name, head)


def autocast(device: torch.device | str, amp: Autocast) -> AbstractContextManager[object]:
    """The autocast of a config's `amp` on a device; nothing for "none"."""
    chosen = chosen_amp(device, amp)
    if chosen == "none":
        return nullcontext()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[chosen]
    return torch.autocast(torch.device(device).type, dtype)


def chosen_amp(device: torch.device | str, amp: Autocast) -> Autocast:
    """Choose for "auto" on a device: bf16 on a GPU that computes in it, fp16 on an older one, none elsewhere.

    Others stay. (GPUs before Ampere emulate bf16, in more time than float32 takes.)
    """
    return native_half(device) if amp == "auto" else amp
