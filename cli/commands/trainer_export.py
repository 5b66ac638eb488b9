"""`trainer export`: a student's weights as timm, torchvision or plain safetensors load them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json
from cli.output import print_fields, print_json


def trainer_export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or a weight file in one.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write: .safetensors or .pth.")],
    format: Annotated[
        str, typer.Option(metavar="timm|torchvision|safetensors", help="Who is to load it.")
    ] = "timm",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check that the run can be exported.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a trained network's weights for other programs."""
    from labelstore.errors import UsageError

    if format not in ("timm", "torchvision", "safetensors"):
        raise UsageError(f"--format {format}: give timm, torchvision or safetensors")
    if out.suffix not in (".safetensors", ".pth", ".pt"):
        raise UsageError(f"--out {out}: give a file that ends with .safetensors or .pth")

    from trainer.export import export_weights
    from trainer.models import load_run

    network, config = load_run(run)
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
