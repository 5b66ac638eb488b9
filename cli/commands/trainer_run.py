"""`trainer run`: train a student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.field_options import with_options
from cli.options import Json
from cli.output import print_fields, print_json, say
from cli.progress import Progress, duration
from cli.run_options import SETTINGS, assemble, overrides
from labelstore.errors import UsageError
from labelstore.untrusted.yaml_files import read_mapping
from trainer.config import without_filled_in


@with_options
def trainer_run(
    fields: Annotated[Mapping[str, Any], SETTINGS],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="A run's config.yaml, or some settings, to start from.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Start from the settings of a paper's table; `trainer recipes` lists them.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting by name; may be repeated."),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", "--dry-run", help="Print the config and train nothing."),
    ] = False,
    json: Json = False,
) -> None:
    """Train a student from stored labels, or from the ground truth.

    Settings come from the recipe or the config file, then from options, then from --set; the last one counts.
    With --resume and no --config they start from the run folder's own config.yaml. Another run's config.yaml gives its
    settings; number and names of classes come from the new run's data.
    """
    if config is not None and recipe is not None:
        raise UsageError(
            "--recipe and --config together: both say where to start; give one of them"
        )
    if config is None and recipe is None and fields["resume"] and fields["output"]:
        kept = Path(fields["output"]) / "config.yaml"
        config = kept if kept.exists() else None
    # what the file leaves out, options may say: only all of them together have to make a run
    base = {}
    if config is not None:
        base = dict(read_mapping(config))
        output = Path(fields["output"] or str(base.get("output") or ""))
        goes_on = fields["resume"] and (output / "config.yaml").resolve() == config.resolve()
        # what a run filled in is of its data, which need not be this one's
        base = base if goes_on else without_filled_in(base)
    if recipe is None:
        try:
            wanted = assemble(base, fields, settings or [])
        except UsageError as error:
            if config is None and fields["resume"] and fields["output"]:
                raise UsageError(
                    f"{fields['output']} holds no run to resume, and these settings begin none: {error}"
                ) from None
            raise
    else:
        from trainer.recipes.finding import recipe_named

        wanted = recipe_named(recipe)(**overrides(fields, settings or []))
    if print_config:
        if json:
            print_json(wanted.to_mapping())
        else:
            print(wanted.to_yaml(), end="")
        return

    import trainer

    with Progress("training", "steps") as progress:
        run = trainer.run(wanted, progress=progress, note=say)
    record = {
        "output": wanted.output,
        "steps": run.steps,
        "crops_seen": run.crops_seen,
        "train_loss": run.train_loss,
        "top1": run.top1,
        "top5": run.top5,
        "best_top1": run.best_top1,
        "best_ema_top1": run.best_ema_top1,
        "seconds": run.seconds,
    }
    from trainer.ranks import is_first_process

    if not is_first_process():
        return
    if json:
        print_json(record)
        return
    shown = {name: value for name, value in record.items() if value is not None}
    percent = {
        name: f"{shown[name]:.2f} %"
        for name in ("top1", "top5", "best_top1", "best_ema_top1")
        if name in shown
    }
    print_fields(
        shown
        | percent
        | {
            "crops_seen": f"{run.crops_seen:,}",
            "train_loss": f"{run.train_loss:.4f}",
            "seconds": duration(run.seconds),
        }
    )
