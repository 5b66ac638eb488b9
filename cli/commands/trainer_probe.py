"""`trainer probe`: linear evaluation of a student's frozen features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json
from cli.output import print_fields, print_json
from cli.progress import Progress


def trainer_probe(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run folder, a weight file in one, timm:NAME, or package.module:function.",
        ),
    ],
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Data set with train/ and val/ inside.")
    ],
    solver: Annotated[str, typer.Option(metavar="lbfgs|sgd", help="How the head is trained.")] = (
        "lbfgs"
    ),
    weight_decay: Annotated[float, typer.Option(help="Of the head's weights.")] = 1e-4,
    lr: Annotated[float, typer.Option(help="Of sgd.")] = 0.1,
    epochs: Annotated[int, typer.Option(help="Of sgd; iterations of lbfgs at most.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the order of images in sgd.")] = 0,
    input_size: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    device: Annotated[str, typer.Option(help="torch device.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 256,
    workers: Annotated[int, typer.Option(min=1, help="Decoding threads.")] = 4,
    json: Json = False,
) -> None:
    """Train a linear classifier on a network's frozen features, and measure its top-1 and top-5."""
    from labelstore.errors import RejectedInput, UsageError
    from trainer.config import TrainConfig, evaluation_split

    folders = data / "train", evaluation_split(data)
    for folder in folders:
        if not folder.is_dir():
            raise RejectedInput(
                f"{folder} is no folder: give --data DIR with train/ and val/ in it"
            )
    if solver not in ("lbfgs", "sgd"):
        raise UsageError(f"--solver {solver}: give lbfgs or sgd")

    import dataclasses

    from trainer.models import choose_device, create_model, load_run
    from trainer.probe import ProbeSettings, linear_probe

    settings = ProbeSettings(
        solver=solver,  # type: ignore[arg-type]  # checked above
        weight_decay=weight_decay,
        lr=lr,
        epochs=epochs,
        seed=seed,
    )
    if Path(model).exists():
        network, config = load_run(Path(model))
    else:
        config = TrainConfig(labels="ground-truth", model=model, pretrained=True, num_classes=1000)
        network = create_model(config)
    config = dataclasses.replace(
        config,
        input_size=input_size or config.input_size,
        eval_batch_size=batch_size,
        workers=workers,
        device=device,
    )
    on = choose_device(device)
    with Progress("features", "images") as progress:
        found, _ = linear_probe(
            network.to("cpu"), *folders, config, settings=settings, device=on, report=progress
        )
    record = {
        "model": model,
        "images": found.num_images,
        "top1": found.top1,
        "top5": found.top5,
        "solver": solver,
    }
    if json:
        print_json(record)
        return
    print_fields(record | {"top1": f"{found.top1:.2f} %", "top5": f"{found.top5:.2f} %"})
