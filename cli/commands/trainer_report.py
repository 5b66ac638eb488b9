"""`trainer report`: one HTML file that shows runs side by side in any browser, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.network_options import OfRun
from cli.options import IMAGES, Json
from cli.output import print_json, say, size
from cli.progress import Progress


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
    if json:
        print_json(page.to_record())
        return
    for line in page.damaged:
        say(f"left out: {line}")
    print(
        f"wrote {out}, {size(page.bytes)}: {_count(page.runs, 'run')} of {_count(page.settings, 'setting')}, "
        f"{page.finished} finished"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
