"""Options of `trainer`'s commands: a network as an argument, and settings of a run by name.

Settings are checked in one place, `TrainConfig` itself; an option only carries text there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from cli.field_options import option
from cli.output import say
from cli.shared_options import importable_here
from labelstore.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from trainer.config import TrainConfig

NETWORK = (
    "A run folder, a weight file in one, timm:NAME, torchvision:NAME, or package.module:function."
)
Network = Annotated[str, typer.Argument(metavar="MODEL", help=NETWORK, callback=importable_here)]
OfRun = Annotated[
    str | None,
    option(
        "--model",
        metavar="NAME",
        help="The network of a run folder that names a function of yours: a folder does not say which code to run.",
        callback=importable_here,
    ),
]
WhichWeights = Annotated[
    str | None,
    option(
        metavar="ema|raw",
        help="Of a checkpoint or run folder with a moving average: it, or the plain weights.",
        unset="raw",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ForwardOptions:
    """How images go through a network."""

    device: str = "auto"
    """torch device."""
    batch_size: Annotated[int, option(min=1)] = 256
    """Images per forward pass."""
    workers: Annotated[int, option(min=1)] = 4
    """Decoding threads."""

    def settings(self) -> dict[str, Any]:
        """As a run's settings call them."""
        return {
            "device": self.device,
            "eval_batch_size": self.batch_size,
            "workers": self.workers,
        }


def load_network(
    source: str,
    *,
    of_run: str | None = None,
    checkpoint: Path | None = None,
    weights: str | None = None,
    classes: Callable[[], Sequence[str]] = tuple,
    settings: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, TrainConfig]:
    """The network, and a config with its settings, changed by `settings`; how a named one sees images is said.

    `classes` gives those of the images that a named network is for, where they matter. UsageError for what names
    no network.
    """
    if weights not in (None, "ema", "raw"):
        raise UsageError(f"--weights {weights}: choose one of ema, raw")
    if Path(source).exists():
        if checkpoint is not None:
            raise UsageError(f"{source} brings its own weights: leave --checkpoint out")
        from trainer.config import TrainConfig
        from trainer.models import load_run

        network, config = load_run(Path(source), model=of_run, weights=weights)  # type: ignore[arg-type]
        return network, TrainConfig.from_mapping(config.to_mapping() | dict(settings or {}))
    if Path(source).suffix in (".pth", ".tar", ".safetensors") or "/" in source.partition(":")[0]:
        raise UsageError(
            f"no such file {source}: give a run folder or weights in one, or timm:NAME"
        )
    if of_run is not None:
        raise UsageError(f"--model {of_run}: {source} is no run folder; leave --model out")
    if not _is_name(source):
        raise UsageError(
            f"no network {source!r} is known, and no file or folder {source} is there: give a run folder or weights, "
            "timm:NAME, torchvision:NAME or package.module:function"
        )
    from trainer.models import load_named

    network, config = load_named(
        source,
        checkpoint=checkpoint,
        weights=weights,  # type: ignore[arg-type] # checked above
        classes=classes(),
        settings=settings or {},
        note=say,
    )
    mean, std = (",".join(f"{value:.4g}" for value in each) for each in (config.mean, config.std))
    crop = f"{config.crop_pct:.4g}"
    if config.crop_mode != "center":
        crop += f" {config.crop_mode}"
    say(
        f"{source}: {config.num_classes:,} outputs; images at {config.input_size} px, crop {crop}, "
        f"{config.interpolation}, mean {mean}, std {std}"
    )
    return network, config


def _is_name(model: str) -> bool:
    """Whether it may be the name of a network: with a library in front, or one of timm's."""
    if ":" in model:
        return True
    import timm

    return bool(timm.is_model(model.partition(".")[0]))


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
    from trainer.config import TrainConfig

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
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"{name}={text!r}: give a value such as {example}") from None
