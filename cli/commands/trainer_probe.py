"""`trainer probe`: linear evaluation of a student's frozen features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.network_options import Network, OfRun, WhichWeights, load_network
from cli.options import IMAGES, Json
from cli.output import print_fields, print_json
from cli.progress import Progress


def trainer_probe(
    model: Network,
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
    solver: Annotated[str, typer.Option(metavar="lbfgs|sgd", help="How the head is trained.")] = (
        "lbfgs"
    ),
    weight_decay: Annotated[float, typer.Option(help="Of the head's weights.")] = 1e-4,
    lr: Annotated[float, typer.Option(help="Of sgd.")] = 0.1,
    epochs: Annotated[int, typer.Option(help="Of sgd; iterations of lbfgs at most.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the order of images in sgd.")] = 0,
    input_size: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    weights: WhichWeights = None,
    of_run: OfRun = None,
    device: Annotated[str, typer.Option(help="torch device.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 256,
    workers: Annotated[int, typer.Option(min=1, help="Decoding threads.")] = 4,
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
    if solver not in ("lbfgs", "sgd"):
        raise UsageError(f"--solver {solver}: give lbfgs or sgd")

    from labelstore.devices import choose_device
    from trainer.probe import ProbeSettings, linear_probe

    settings = ProbeSettings(
        solver=solver,  # type: ignore[arg-type]  # checked above
        weight_decay=weight_decay,
        lr=lr,
        epochs=epochs,
        seed=seed,
    )
    changes = {"eval_batch_size": batch_size, "workers": workers, "device": device}
    if input_size is not None:
        changes["input_size"] = input_size
    network, config = load_network(model, of_run=of_run, weights=weights, settings=changes)
    on = choose_device(device)
    with Progress("features", "images") as progress:
        found, _ = linear_probe(
            network.to("cpu"), train, val, config, settings=settings, device=on, report=progress
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
