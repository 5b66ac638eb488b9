"""Commands that show or pass on runs: `trainer report` as one HTML file, `trainer export` as weights for other code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.output import answer, say, size
from cli.progress import Progress
from cli.shared_options import IMAGES, Json
from cli.trainer_options import OfRun


def trainer_report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, or folders with run folders in them."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="HTML file to write.")] = Path(
        "report.html"
    ),
    images: Annotated[
        Path | None,
        typer.Option(
            metavar=IMAGES,
            help="Measure every run's best weights on these, for results by class and a fair comparison.",
            show_default="what the runs recorded",
        ),
    ] = None,
    of_run: OfRun = None,
    device: Annotated[str, typer.Option(help="torch device, with --images.")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Decoding threads, with --images.")] = 4,
    json: Json = False,
) -> None:
    """Write one HTML file with what runs were trained on, how they went and how they compare, over seeds and by class.

    It needs no server and no network. What a run did not record is said.
    """
    from labelstore.report.shell import check_page
    from trainer.report import write_report

    check_page(out)
    if images is None:
        page = write_report(runs, out)
    else:
        from labelstore.devices import choose_device

        on = choose_device(device)
        with Progress("evaluation", "images") as progress:
            page = write_report(
                runs,
                out,
                images=images,
                model=of_run,
                device=on,
                workers=workers,
                progress=progress,
            )
    if not json:
        for line in page.damaged:
            say(f"left out: {line}")
    counts = f"{_count(page.runs, 'run')} of {_count(page.settings, 'setting')}, {page.finished} finished"
    answer(page.to_record(), f"wrote {out}, {size(page.bytes)}: {counts}", json=json)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


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

    from trainer.models import load_run
    from trainer.weight_export import export_weights

    network, config = load_run(run, model=of_run, weights="ema" if weights == "ema" else None)
    record = export_weights(
        network,
        config,
        out,
        format=format,  # type: ignore[arg-type]  # checked above
        overwrite=overwrite,
        dry_run=dry_run,
    )
    answer(record, record, json=json)
