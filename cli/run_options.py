"""The settings of a training run as options: what was given on the command line, in a file, and by `--set`.

Values are checked in one place, `TrainConfig` itself; an option only carries text there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from cli.field_options import Shown, option
from cli.named_functions import importable_here
from labelstore.errors import UsageError
from trainer.config import TrainConfig

SETTINGS = Shown(
    text_of=TrainConfig,
    panels={
        "data": "What is learnt from",
        "model": "Which network",
        "input_size": "Which pixels",
        "batch_size": "How long, how fast",
        "seed": "Where and with what",
    },
    options={
        "temperature": option("--temperature", "--temp"),
        # torchrun takes `--log` for the beginning of an option of its own, so the long name comes first
        "loggers": option("--loggers", "--log"),
        "train": option("--train", "--images"),
        "phases": option("--phases", metavar="LABELS:EPOCHS[:MIXING],..."),
        "checkpoint_weights": option("--checkpoint-weights", "--weights"),
    },
    left_out=("class_names", "provenance"),  # a run writes them down about itself
)


def assemble(
    base: Mapping[str, Any], fields: Mapping[str, Any], settings: list[str]
) -> TrainConfig:
    """The settings of a file, overridden by the options that were given, overridden by `key=value` settings."""
    return TrainConfig.from_mapping({**base, **overrides(fields, settings)})


def overrides(fields: Mapping[str, Any], settings: list[str]) -> dict[str, object]:
    """The options that were given and the `key=value` settings, by name; the latter count."""
    values: dict[str, object] = {}
    for name, given in fields.items():
        if given is not None:
            values[name] = given if isinstance(given, bool) else parsed(name, given)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: give key=value, for example --set lr=0.1")
        name = name.strip().replace("-", "_")
        values[name] = parsed(name, text)
    for name in ("model", "teacher", "teacher_model"):
        if isinstance(source := values.get(name), str):
            importable_here(source)
    return values


def parsed(name: str, text: str) -> object:
    """The value that a text means for a field: `none`, a list `0.9,0.999`, a mapping `{a: 1}`, or the text.

    >>> parsed("betas", "0.9,0.95"), parsed("clip_grad", "none"), parsed("lr", "0.1")
    (['0.9', '0.95'], None, '0.1')
    """
    hint = get_type_hints(TrainConfig).get(name)
    if not text.strip() and Path in get_args(hint):
        raise UsageError(f"--{name.replace('_', '-')} is empty: give a path, or none")
    if type(None) in get_args(hint) and text.lower() in ("none", "null", ""):
        return None
    kind = get_origin(hint)
    if kind is tuple and text.lstrip().startswith(("[{", "{")):
        return _as_yaml(name, text, "'[{labels: fkd, epochs: 75}]'")
    if kind is tuple:
        return [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
    if kind is not None and isinstance(kind, type) and issubclass(kind, Mapping):
        return _as_yaml(name, text, "'{depth: 2}'")
    return text


def _as_yaml(name: str, text: str, example: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"{name}={text!r}: give a value such as {example}") from None
