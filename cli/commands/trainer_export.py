"""`trainer export`: a student's weights as timm, torchvision or plain safetensors load them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.network_options import OfRun
from cli.options import Json
from cli.output import print_fields, print_json


def trainer_export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or a weight file in one.")
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="File to write, .safetensors or .pth; of hf a folder."),
    ],
    format: Annotated[
        str, typer.Option(metavar="timm|torchvision|safetensors|hf", help="Who is to load it.")
    ] = "timm",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="raw|ema",
            help="Of a run folder: the best weights, or the moving average's.",
            show_default="raw",
        ),
    ] = None,
    of_run: OfRun = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check that the run can be exported.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a trained network's weights for other programs.

    With --format hf a folder with config.json and model.safetensors, as timm's networks lie on the Hugging Face Hub:
    `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it, with its classes and how images are prepared.
    """
    from labelstore.errors import UsageError

    if format not in ("timm", "torchvision", "safetensors", "hf"):
        raise UsageError(f"--format {format}: give timm, torchvision, safetensors or hf")
    # "model" was the word for the plain weights
    if weights not in (None, "raw", "model", "ema"):
        raise UsageError(f"--weights {weights}: choose one of ema, raw")
    if weights is not None and run.is_file():
        raise UsageError(f"--weights {weights}: {run} is a weight file; give its run folder")
    if format != "hf" and out.suffix not in (".safetensors", ".pth", ".pt"):
        raise UsageError(f"--out {out}: give a file that ends with .safetensors or .pth")

    from trainer.export import export_weights
    from trainer.models import load_run

    network, config = load_run(run, model=of_run, weights="ema" if weights == "ema" else None)
    record = export_weights(
        network,
        config,
        out,
        format=format,  # type: ignore[arg-type]  # checked above
        overwrite=overwrite,
        dry_run=dry_run,
    )
    if json:
        print_json(record)
        return
    print_fields(record)
