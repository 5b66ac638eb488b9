"""`trainer probe`: linear evaluation of a student's frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.field_options import with_options
from cli.network_options import ForwardOptions, Network, OfRun, WhichWeights, load_network
from cli.options import IMAGES, Json
from cli.output import print_fields, print_json
from cli.progress import Progress


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """How the linear classifier is trained."""

    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    """How the head is trained."""
    weight_decay: float = 1e-4
    """Weight decay of the head's weights."""
    lr: float = 0.1
    """Learning rate of sgd."""
    epochs: int = 100
    """Epochs of sgd; most iterations of lbfgs."""
    seed: int = 0
    """Seed of the order of images in sgd."""


@with_options
def trainer_probe(
    model: Network,
    head: HeadOptions,
    forward: ForwardOptions,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data set with train/ and val/ inside.")
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            metavar=IMAGES,
            help="Images that the classifier learns from: a folder, list or tar shards.",
            show_default="train/ in --data",
        ),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option(
            metavar=IMAGES,
            help="Images that it is measured on, of the same classes.",
            show_default="val/ in --data",
        ),
    ] = None,
    input_size: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    weights: WhichWeights = None,
    of_run: OfRun = None,
    json: Json = False,
) -> None:
    """Train a linear classifier on a network's frozen features, and measure its top-1 and top-5."""
    from labelstore.errors import RejectedInput, UsageError
    from labelstore.images import are_there
    from trainer.config import evaluation_split

    if data is not None:
        train, val = train or data / "train", val or evaluation_split(data)
    if train is None or val is None:
        raise UsageError(
            "no images: give --data DIR with train/ and val/ in it, or --train and --val"
        )
    for images in (train, val):
        if not are_there(images):
            raise RejectedInput(
                f"nothing is at {images}: give --data DIR with train/ and val/ in it, or --train and --val"
            )

    from labelstore.devices import choose_device
    from trainer.probe import ProbeSettings, linear_probe

    changes = forward.settings()
    if input_size is not None:
        changes["input_size"] = input_size
    network, config = load_network(model, of_run=of_run, weights=weights, settings=changes)
    on = choose_device(forward.device)
    with Progress("features", "images") as progress:
        found, _ = linear_probe(
            network.to("cpu"),
            train,
            val,
            config,
            settings=ProbeSettings(**vars(head)),
            device=on,
            report=progress,
        )
    record = {
        "model": model,
        "images": found.num_images,
        "top1": found.top1,
        "top5": found.top5,
        "solver": head.solver,
    }
    if json:
        print_json(record)
        return
    print_fields(record | {"top1": f"{found.top1:.2f} %", "top5": f"{found.top5:.2f} %"})
