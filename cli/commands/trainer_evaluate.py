"""`trainer evaluate`: top-1 and top-5 of a run or of any network on a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json
from cli.output import print_fields, print_json
from cli.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from trainer.config import TrainConfig


def trainer_evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run folder, a weight file in one, timm:NAME, or package.module:function.",
        ),
    ],
    val: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Images to evaluate on, one folder per class.",
            show_default="the run's own",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data set: its val/ is evaluated on.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights for a network that is given by name."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the run to change: input_size, crop_pct, mean ...; may be repeated.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="torch device.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 256,
    workers: Annotated[int, typer.Option(min=1, help="Decoding threads.")] = 4,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also the top-1 of every class.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure the top-1 and top-5 of a model on a folder of validation images."""
    from labelstore.images import scan_folder
    from trainer.evaluation import evaluate
    from trainer.models import choose_device

    changes = {"device": device, "eval_batch_size": batch_size, "workers": workers}
    network, config = _load(model, checkpoint, val, data, settings or [], changes)
    folder = _folder(config)
    on = choose_device(config.device)
    with Progress("evaluation", "images") as progress:
        found = evaluate(network.to(on), folder, config, device=on, report=progress)
    record: dict[str, Any] = {
        "model": model,
        "val": folder,
        "images": found.num_images,
        "top1": found.top1,
        "top5": found.top5,
        "loss": found.loss,
    }
    if per_class:
        names = config.class_names or scan_folder(folder, keys_only=True).classes
        record["top1_per_class"] = dict(zip(names, found.top1_per_class.tolist(), strict=False))
    if json:
        print_json(record)
        return
    classes = record.pop("top1_per_class", {})
    shown = {
        "top1": f"{found.top1:.2f} %",
        "top5": f"{found.top5:.2f} %",
        "loss": f"{found.loss:.4f}",
    }
    print_fields(record | shown | {name: f"{top1:.2f} %" for name, top1 in classes.items()})


def _load(
    model: str,
    checkpoint: Path | None,
    val: Path | None,
    data: Path | None,
    settings: list[str],
    changes: dict[str, Any],
) -> tuple[nn.Module, TrainConfig]:
    from cli.run_options import assemble
    from labelstore.errors import UsageError
    from labelstore.images import scan_folder
    from trainer.config import TrainConfig
    from trainer.models import create_model, load_run

    if val is not None or data is not None:
        # in the place of what the run was evaluated on
        changes = {**changes, "val": val, "data": data}

    def changed(config: TrainConfig, **more: object) -> TrainConfig:
        together = TrainConfig.from_mapping(config.to_mapping() | changes | more)
        return assemble(together, {}, settings)

    if Path(model).exists():
        if checkpoint is not None:
            raise UsageError(f"{model} brings its own weights: leave --checkpoint out")
        network, config = load_run(Path(model))
        return network, changed(config)
    if Path(model).suffix in (".pth", ".tar", ".safetensors"):
        raise UsageError(f"no such file {model}: give a run folder or weights, or timm:NAME")
    config = changed(
        TrainConfig(
            labels="ground-truth",
            model=model,
            initial_checkpoint=checkpoint,
            pretrained=checkpoint is None,
        )
    )
    if config.num_classes is None:
        classes = scan_folder(_folder(config), keys_only=True).classes
        config = changed(config, num_classes=len(classes))
    return create_model(config), config


def _folder(config: TrainConfig) -> Path:
    """The images to evaluate on."""
    from labelstore.errors import UsageError

    if config.val is not None:
        return config.val
    if config.data is None:
        raise UsageError("nothing to evaluate on: give --val DIR, or --data DIR with val/ inside")
    return config.data / "val"
