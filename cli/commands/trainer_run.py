"""`trainer run` trains a student; `trainer recipes` lists the settings of the papers' tables that it may start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.field_options import Shown, option, with_options
from cli.output import answer, drawn, duration, say
from cli.progress import Progress
from cli.shared_options import Json
from cli.trainer_options import overrides
from labelstore.errors import UsageError
from labelstore.untrusted.yaml_files import read_mapping
from trainer.config import TrainConfig, without_filled_in

SETTINGS = Shown(
    text_of=TrainConfig,
    panels={
        "data": "What is learnt from",
        "model": "Which network",
        "input_size": "Which pixels",
        "batch_size": "How long, how fast",
        "seed": "Where and with what",
    },
    options={
        "temperature": option("--temperature", "--temp"),
        # torchrun takes `--log` for the beginning of an option of its own, so the long name comes first
        "loggers": option("--loggers", "--log"),
        "train": option("--train", "--images"),
        "phases": option("--phases", metavar="LABELS:EPOCHS[:MIXING],..."),
        "checkpoint_weights": option("--checkpoint-weights", "--weights"),
    },
    left_out=("class_names", "provenance"),  # a run writes them down about itself
)


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
        typer.Option("--print-config", help="Print the config, and look at nothing else."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Open data, labels, network and run folder, print the config, and write nothing.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Train a student from stored labels, or from the ground truth.

    Settings come from the recipe or the config file, then from options, then from --set; the last one counts.
    With --resume and no --config they start from the run folder's own config.yaml. Another run's config.yaml gives its
    settings; number and names of classes come from the new run's data.
    """
    wanted = _wanted(fields, settings or [], config, recipe)
    if dry_run:
        from trainer.engine import rehearse

        rehearse(wanted, note=say)
    if dry_run or print_config:
        answer(wanted.to_mapping(), wanted.to_yaml().removesuffix("\n"), json=json)
        return

    import trainer

    with Progress("training", "steps") as progress:
        evaluated = progress.beside("evaluation", "images")
        run = trainer.run(wanted, progress=progress, evaluated=evaluated, note=say)
    from cli.progress import is_first_rank

    if not is_first_rank():
        return
    record = {"output": wanted.output, **run.figures()}
    percent = ("top1", "top5", "best_top1", "best_ema_top1")
    words = {
        name: f"{value:.2f} %" if name in percent else value
        for name, value in record.items()
        if value is not None
    } | {
        "crops_seen": f"{run.crops_seen:,}",
        "train_loss": f"{run.train_loss:.4f}",
        "seconds": duration(run.seconds),
    }
    answer(record, words, json=json)


def _wanted(
    fields: Mapping[str, Any], settings: list[str], config: Path | None, recipe: str | None
) -> TrainConfig:
    """The settings of a file or recipe, overridden by the options that were given, then by `key=value` settings."""
    if config is not None and recipe is not None:
        raise UsageError(
            "--recipe and --config together: both say where to start; give one of them"
        )
    if recipe is not None:
        from trainer.recipes import recipe_named

        return recipe_named(recipe)(**overrides(fields, settings))
    if config is None and fields["resume"] and fields["output"]:
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
    try:
        return TrainConfig.from_mapping({**base, **overrides(fields, settings)})
    except UsageError as error:
        if config is None and fields["resume"] and fields["output"]:
            raise UsageError(
                f"{fields['output']} holds no run to resume, and these settings begin none: {error}"
            ) from None
        raise


def trainer_recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One recipe, with all that it sets.")
    ] = None,
    sources: Annotated[
        bool,
        typer.Option(
            "--sources", help="Every setting of the recipe, and the table or file that prints it."
        ),
    ] = False,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option("--diff", metavar="A B", help="The settings in which two recipes differ."),
    ] = None,
    json: Json = False,
) -> None:
    """List the recipes that `trainer run --recipe NAME` knows; with a name, one of them in full."""
    from trainer.recipes import RECIPES, card, recipe_named

    if diff is not None:
        if name is not None or sources:
            raise UsageError("--diff A B stands alone: leave out NAME and --sources")
        _print_differences(diff, json=json)
    elif sources:
        if name is None:
            raise UsageError(
                "--sources without a recipe: give its name; `trainer recipes` lists them"
            )
        _print_sources(name, json=json)
    elif name is not None:
        shown = asdict(card(recipe_named(name)))
        answer(shown, {part: text for part, text in shown.items() if text}, json=json)
    else:
        cards = [card(each) for each in RECIPES.values()]
        rows = [(each.name, each.summary, each.expected) for each in cards]
        answer({"recipes": cards}, _table(("recipe", "what", "expected"), rows), json=json)


def _print_sources(name: str, *, json: bool) -> None:
    from trainer.recipes import RELEASES, recipe_named, source_rows

    recipe = recipe_named(name)
    rows = source_rows(recipe)
    text = " ".join(f"{row.source} {row.other_source}" for row in rows)
    releases = {release: where for release, where in RELEASES.items() if f"{release} " in text}
    named = [{"name": each, "where": where} for each, where in releases.items()]
    record = {"recipe": recipe.__name__, "settings": rows, "releases": named}
    cells = [
        (
            row.setting,
            _shown(row.value),
            row.source,
            f"{_shown(row.other)}: {row.other_source}" if row.other_source else "",
        )
        for row in rows
    ]
    table = _table(("setting", "value", "source", "elsewhere"), cells)
    answer(record, table, "", releases, json=json)


def _print_differences(names: tuple[str, str], *, json: bool) -> None:
    from trainer.recipes import differences, recipe_named

    first, second = (recipe_named(name) for name in names)
    rows = differences(first, second)
    record = {"first": first.__name__, "second": second.__name__, "differences": rows}
    cells = [(row.setting, _shown(row.first), _shown(row.second)) for row in rows]
    answer(record, _table(("setting", first.__name__, second.__name__), cells), json=json)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> object:
    return drawn(None, heads, rows, left=len(heads), is_plain=True)


def _shown(value: object) -> str:
    """A value as --set takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_shown(each)}" for name, each in value.items()) + "}"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
