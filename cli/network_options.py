"""A network as an argument: a run folder, weights in one, or a library's or function's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.field_options import option
from cli.named_functions import importable_here
from cli.output import say
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
    typer.Option(
        "--model",
        metavar="NAME",
        help="The network of a run folder that names a function of yours: a folder does not say which code to run.",
        callback=importable_here,
    ),
]

WhichWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="ema|raw",
        help="Of a checkpoint or run folder with a moving average: it, or the plain weights.",
        show_default="raw",
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
