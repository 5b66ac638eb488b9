"""Networks that no run of this package trained: a library's with its own weights, a checkpoint's, a function's.

Each comes with the settings that it was made for (pixels, normalisation, crop) and with its own classes: none gets a
classifier of random weights instead of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from labelstore.errors import UsageError
from labelstore.teachers.class_map import wordnet_ids
from labelstore.teachers.named_networks import build, classes_of, is_function, own_settings
from labelstore.teachers.weights import Weights, load_weights, read_weights
from trainer.config import TrainConfig
from trainer.models.networks import logits_of

USUAL_CLASSES = 1000
"""Asked of a function where nothing says how many outputs are wanted."""


def load_named(
    model: str,
    *,
    checkpoint: Path | None = None,
    weights: Weights | None = None,
    classes: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> tuple[nn.Module, TrainConfig]:
    """A network by name, in evaluation mode on the CPU, and a config that says how images go in and classes come out.

    timm:NAME, torchvision:NAME and bare timm names bring their pretrained weights, or take those of `checkpoint`, of
    which `weights` chooses the plain ones ("raw") or their moving average ("ema"); `note` says which were taken by
    default. package.module:function is called with `num_classes`. `settings` are fields of TrainConfig and override
    the network's own. Where all of `classes` (folder names) are WordNet ids and the network is one of
    ImageNet or a variant of it, its outputs are named by them. UsageError for another number of classes than the
    weights have.
    """
    given = dict(settings or {})
    config = TrainConfig.from_mapping(
        {"labels": "ground-truth", "model": model, "initial_checkpoint": checkpoint, **given}
    )
    options = dict(config.model_kwargs)
    if weights is not None and checkpoint is None:
        raise UsageError(
            f"weights={weights!r} without checkpoint: it chooses between a checkpoint's weights"
        )
    is_own = is_function(model)
    file = None if checkpoint is None else read_weights(checkpoint, weights)
    if is_own or file is not None:
        num_classes_of_file = None if file is None else classes_of(model, options, file.state)
        options["num_classes"] = (
            config.num_classes or num_classes_of_file or len(classes) or USUAL_CLASSES
        )
    network = build(model, options, pretrained=not is_own and file is None)
    if file is not None:
        load_weights(network, file)
        if file.note is not None:
            note(file.note)
    if not is_own or hasattr(network, "pretrained_cfg"):
        found = own_settings(model, network)
        config = dataclasses.replace(
            config, **{name: value for name, value in found.items() if name not in given}
        )
    outputs = _outputs(network.eval(), config)
    if config.num_classes not in (None, outputs):
        raise UsageError(
            f"num_classes={config.num_classes}: {model} has {outputs} outputs, and others would be of random weights; "
            "leave it out"
        )
    names = config.class_names or _names(outputs, classes)
    config = dataclasses.replace(config, num_classes=outputs, class_names=names)
    return network, config


def _names(outputs: int, classes: Sequence[str]) -> tuple[str, ...]:
    if not classes or not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return ()
    return tuple(wordnet_ids(outputs) or ())


def _outputs(network: nn.Module, config: TrainConfig) -> int:
    logits = logits_of(network, config)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UsageError(f"model={config.model!r} gives no row of logits per image: no classifier")
    return logits.shape[1]
